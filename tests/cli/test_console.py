"""The console command: its verbs, configurations by name, and the wheel that brings them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import ROOT, run_script

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
    assert "--images: nowhere does not exist" in code_of(main, "embed", f"--checkpoint={ROOT}", "--images=nowhere")
    assert "--checkpoint: nowhere does not exist" in code_of(main, "export", "--checkpoint=nowhere")


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
    says = code_of(main, "pretrain", "--config", "fish")
    assert f"fish does not exist; the configurations that come along are in {ROOT}" in says
    assert re.search(r": aircraft, backbones/pvt_v2_b0, .*, methods/dino, .*, own, pets, ", says)
    assert packaged_config("rn_configs/methods/dino.yaml") == str(PACKAGED / "methods" / "dino.yaml")
    says = code_of(main, "compare", "--config", "fish", "--datasets", "x", "--methods", "idmm")
    assert "fish does not exist; small and paper come along" in says
    says = code_of(main, "compare", "--config", "paper", "--datasets", "x", "--methods", "idmm")
    assert "x_train.beton does not exist; make it with: idmm-fast convert" in says


@pytest.mark.integration
def test_the_wheel_brings_command_and_configurations(tmp_path):
    """Installed into an empty folder and run from another one, without this checkout on the path."""

    def run(*command, **options):
        done = subprocess.run(command, capture_output=True, text=True, timeout=250, **options)
        return done.returncode, done.stdout + done.stderr

    pip = (sys.executable, "-m", "pip", "--disable-pip-version-check")
    built = run(*pip, "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", tmp_path, ROOT)
    assert built[0] == 0, built[1]
    (wheel,) = tmp_path.glob("*.whl")
    installed = run(*pip, "install", "-q", "--no-deps", "--target", tmp_path / "site", wheel)
    assert installed[0] == 0, installed[1]
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "site")}
    (tmp_path / "elsewhere").mkdir()
    for verb in ("pretrain", "finetune"):
        code, said = run(
            tmp_path / "site" / "bin" / "idmm-fast",
            verb,
            "--config=pets",
            "--data.train=x.beton",
            cwd=tmp_path / "elsewhere",
            env=environment,
        )
        assert (code, said[:48]) == (1, "error: data.train: x.beton does not exist; make ")
    code, said = run(
        sys.executable, "-P", "-c", "import idmm_fast; print(idmm_fast.__file__)", cwd=ROOT, env=environment
    )
    assert said.strip() == str(tmp_path / "site" / "idmm_fast" / "__init__.py")
