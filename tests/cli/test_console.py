"""The console command: its verbs, configurations by name, and the wheel that brings them."""

import ast
import os
import re
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest
from helpers import ROOT, TINY_VIT, photographs, run_script
from PIL import Image

from idmm_fast.__main__ import VERBS, main
from idmm_fast.config import finetune, load_yaml, pretrain
from idmm_fast.config.load import PACKAGED, packaged_config


def code_of(call, *arguments):
    with pytest.raises(SystemExit) as end:
        call([*arguments])
    return end.value.code


def test_verbs_have_help_and_others_are_refused(capsys):
    main([])
    main(["--help"])
    shown = capsys.readouterr().out
    assert shown.count("idmm-fast VERB ...") == 2
    assert all(f"\n  {verb} " in shown for verb in VERBS)
    assert "there is no 'train'" in code_of(main, "train")
    assert "Did you mean predict?" in code_of(main, "predicts")
    main(["--version"])
    assert capsys.readouterr().out.startswith("idmm-fast ")
    assert "nowhere does not exist" in code_of(main, "predict", "--checkpoint=nowhere", "--images=x")
    assert "--images: nowhere does not exist" in code_of(main, "predict", f"--checkpoint={ROOT}", "--images=nowhere")
    says = code_of(main, "predict", f"--checkpoint={ROOT}", f"--images={ROOT}", "--out=x.txt")
    assert "--out: x.txt ends neither in .csv, nor in .json" in says
    assert "--images: nowhere does not exist" in code_of(main, "embed", f"--checkpoint={ROOT}", "--images=nowhere")
    assert "--checkpoint: nowhere does not exist" in code_of(main, "export", "--checkpoint=nowhere")


@pytest.mark.parametrize("place", ["idmm_fast.__main__.import_module", "idmm_fast.inspect.inspect"])
def test_an_interrupt_leaves_a_word_and_no_traceback(place, monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(place, interrupted)
    assert code_of(main, "inspect", "nowhere") == 130
    assert capsys.readouterr().err == "stopped\n"


SCRIPTS = {"convert": "write_datasets.py", "inspect": "inspect_data.py", "pretrain": "train_idmm.py"}


@pytest.mark.parametrize("verb", VERBS)
def test_help_shows_examples_as_they_are_typed(verb, capsys):
    """Called as a verb, there is an example of it and no script; called as the script at the root, the other way."""
    assert not code_of(main, verb, "--help")
    shown = capsys.readouterr().out
    assert re.search(rf"^ *idmm-fast {verb} .*-", shown, re.M), shown
    assert not re.search(r"python \w+\.py|rn_configs/(?!methods/|compare/)\S+\.yaml", shown.partition("\n\n  --")[0])
    script = ROOT / SCRIPTS.get(verb, f"{verb}.py")
    if not script.exists():
        assert verb in ("embed", "export")
        return
    shown = run_script(script.name, "--help").stdout
    assert re.search(rf"^ *python {script.name} .*-", shown, re.M)
    assert f"idmm-fast {verb} " not in shown.partition("\n\n  --")[0]


def test_messages_name_verbs_and_no_scripts():
    """What pip installs has no scripts. Docstrings, which heads of helps are made of, and SCRIPT are left out."""
    scripts = "|".join(path.stem for path in ROOT.glob("*.py"))
    assert "write_datasets" in scripts
    named = []
    for path in sorted((ROOT / "idmm_fast").rglob("*.py")):
        tree = ast.parse(path.read_text())
        left_out = [node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)]
        left_out += [node.value for node in tree.body if ast.unparse(node).startswith("SCRIPT = ")]
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in left_out:
                named += [f"{path}:{node.lineno}" for _ in re.findall(rf"\b(?:{scripts})\.py\b", node.value)]
    assert named == []


RECIPES = sorted((ROOT / "rn_configs").rglob("*.yaml"))
PAGES = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]


def test_commands_of_the_pages_are_understood(capsys):
    """Every verb exists, and its --help names every option, but for the short ones that it has in words."""
    found = {match for page in PAGES for match in re.findall(r"^idmm-fast ([a-z]+) (.*)$", page.read_text(), re.M)}
    assert {verb for verb, _ in found} >= {"pretrain", "finetune", "evaluate", "predict", "embed"}
    for verb, rest in found:
        code_of(main, verb, "--help")
        shown = capsys.readouterr().out
        for option in re.findall(r"--[a-z][a-z_.-]*", rest):
            assert option in shown, (verb, option)
        for name in re.findall(r"--config ([\w/]+)", rest):
            assert Path(packaged_config(name, "finetune" if verb == "finetune" else "")).is_file(), name


def test_configurations_are_found_by_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for schema, name, folder in (
        (pretrain, "pets", ""),
        (finetune, "pets", "finetune"),
        (pretrain, "methods/dino", ""),
    ):
        wanted = ROOT / "rn_configs" / folder / f"{name}.yaml"
        assert load_yaml(schema.SCHEMA, packaged_config(name, folder)) == load_yaml(schema.SCHEMA, wanted)
    (tmp_path / "pets").write_text("training: {epochs: 3}")
    assert packaged_config("pets") == "pets"  # a file that is here goes before
    for verb in ("pretrain", "finetune"):
        says = code_of(main, verb, "--config", "flowers", "--data.train=nowhere.beton")
        assert "data.train: nowhere.beton does not exist" in says
        says = code_of(main, verb, "--config", "flowers", "--data", "my fotos", "--data.test=nowhere.beton")
        assert says == "error: data.train (--data): there is no folder or .beton file my fotos"
    says = code_of(main, "pretrain", "--config", "fish")
    assert f"fish does not exist; the configurations that come along are in {ROOT}" in says
    assert re.search(r": aircraft, backbones/pvt_v2_b0, .*, methods/dino, .*, own, pets, ", says)
    assert "Did you mean" not in says
    assert code_of(main, "pretrain", "--config", "owns").endswith(". Did you mean own?")
    for verb, typed, meant in (
        ("pretrain", "conf", "config"),
        ("finetune", "ini", "init"),
        ("evaluate", "dat", "data"),
    ):
        says = code_of(main, verb, f"--{typed}=x")
        assert says.startswith(f"error: command line: there is no key '{typed}'. Did you mean --{meant}?"), says
    assert packaged_config("rn_configs/methods/dino.yaml") == str(PACKAGED / "methods" / "dino.yaml")
    says = code_of(main, "compare", "--config", "fish", "--datasets", "x", "--methods", "idmm")
    assert "fish does not exist; small and paper come along" in says
    says = code_of(main, "compare", "--config", "paper", "--datasets", "x", "--methods", "idmm")
    assert "x_train.beton does not exist; make it with: idmm-fast convert" in says


def done(*command, **options):
    """(exit status, all that it printed) of a command."""
    ended = subprocess.run(command, capture_output=True, text=True, timeout=280, **options)
    return ended.returncode, ended.stdout + ended.stderr


@pytest.fixture(scope="module")
def environment(tmp_path_factory):
    """An empty environment with the wheel in it. It finds the other packages of this one, and no checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    venv.create(folder / "env", with_pip=False)
    site = next((folder / "env" / "lib").glob("python*/site-packages"))
    (site / "others.pth").write_text("\n".join({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}) + "\n")
    python = folder / "env" / "bin" / "python"
    code, said = done(python, "-c", "import yaml, idmm_fast", cwd=folder, env=elsewhere())
    assert (code, "No module named 'idmm_fast'" in said) == (1, True), said
    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    code, said = done(*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, ROOT, env=elsewhere())
    assert code == 0, said
    (wheel,) = folder.glob("*.whl")
    code, said = done(*pip, "--python", python, "install", "-q", "--no-deps", "--no-index", wheel, env=elsewhere())
    assert code == 0, said
    return folder / "env"


def elsewhere():
    """This process's environment without what leads to the checkout."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


@pytest.mark.integration
def test_the_wheel_brings_command_and_configurations(environment, tmp_path):
    """Installed into an empty environment and run from another folder."""
    for verb in ("pretrain", "finetune"):
        command = (environment / "bin" / "idmm-fast", verb, "--config=pets", "--data.train=x.beton")
        code, said = done(*command, cwd=tmp_path, env=elsewhere())
        assert (code, said[:48]) == (1, "error: data.train: x.beton does not exist; make ")
    command = (environment / "bin" / "idmm-fast", "compare", "--config=small", "--datasets=x", "--methods=idmm")
    code, said = done(*command, cwd=tmp_path, env=elsewhere())
    assert (code, said[:40]) == (1, "error: data/x_train.beton does not exist")
    (site,) = environment.glob("lib/python*/site-packages")
    files = {path.relative_to(site / "idmm_fast") for path in (site / "idmm_fast" / "rn_configs").rglob("*.yaml")}
    assert files == {Path("rn_configs", path.relative_to(ROOT / "rn_configs")) for path in RECIPES}
    printed = "import idmm_fast; print(idmm_fast.__file__)"
    code, said = done(environment / "bin" / "python", "-c", printed, cwd=tmp_path, env=elsewhere())
    assert said.strip() == str(site / "idmm_fast" / "__init__.py")


@pytest.mark.slow
def test_the_wheel_leads_from_a_folder_to_predictions(environment, tmp_path):
    """The road of the README by the installed command; its kernels are compiled anew."""
    for k, photo in enumerate(photographs(24, seed=4)):
        path = tmp_path / "my images" / "ab"[k % 2] / f"{k}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo).save(path)
    tiny = ("--model.name=vit_tiny_patch16_224", f"--model.options={TINY_VIT}", "--model.image_size=32")
    quick = (
        "--training.compile=false",
        "--training.batch_size=8",
        "--training.epochs=1",
        "--training.warmup_epochs=0.5",
    )
    for words in (
        ("inspect", "my images"),
        ("pretrain", "--config=own", "--data=my images", "--out=runs/mine", *tiny, *quick),
        ("finetune", "--config=own", "--data=my images", "--init=runs/mine", "--out=runs/tuned", *tiny, *quick),
        ("evaluate", "--checkpoint=runs/tuned", "--data=my images"),
        ("predict", "--checkpoint=runs/tuned", "--images=my images", "--out=predictions.csv"),
    ):
        home = elsewhere() | {"IDMM_FAST_CACHE": str(tmp_path / "cache")}
        code, said = done(environment / "bin" / "idmm-fast", *words, cwd=tmp_path, env=home)
        assert code == 0, said
    assert len((tmp_path / "predictions.csv").read_text().splitlines()) == 25
