"""What the scripts say at the beginning and at the end of a run, and how soon they tell a mistake."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
from helpers import FINETUNE, PRETRAIN, ROOT, run_script, tiny_config

from idmm_fast import cli
from idmm_fast.beton import write_beton
from idmm_fast.commands.pretrain import _next_commands
from idmm_fast.datasets import Split
from idmm_fast.errors import ConfigError, Stopped
from idmm_fast.train.finetuning import finetune
from idmm_fast.train.pretraining import pretrain

TINY = [
    "--model.name=vit_tiny_patch16_224",
    "--model.options={patch_size: 8, embed_dim: 32, depth: 1, num_heads: 2}",
    "--model.image_size=16",
    "--training.compile=false",
    "--training.device=cpu",
    "--training.batch_size=32",
    "--training.epochs=3",
]


@pytest.mark.parametrize("script", ["train_idmm.py", "finetune.py"])
def test_only_files_that_were_written_are_announced(script, tiny_beton, tmp_path):
    args = (f"--data.train={tiny_beton}", f"--data.test={tiny_beton}", f"--logging.run_dir={tmp_path / 'run'}", *TINY)
    trial = run_script(script, *args, "--training.max_steps=1")
    assert trial.returncode == 0, trial.stderr
    assert (
        trial.stdout.splitlines()[-1]
        == f"{tmp_path / 'run'}: dry run of at most 1 steps (training.max_steps); no weights were written"
    )
    assert not list((tmp_path / "run").rglob("*.safetensors"))
    if script == "train_idmm.py":
        done, following, _ = run_script(script, *args, "--training.resume=auto").stdout.splitlines()[-3:]
        run, data = tmp_path / "run", f"--data {tiny_beton} --data.test {tiny_beton}"
        assert following == f"next: idmm-fast finetune --config own {data} --init {run} --out {run}_finetune"
        assert done.startswith(f"done: {tmp_path / 'run'} (")
        announced = done.partition("(")[2].rstrip(")").split(", ")
        assert set(announced) == {"backbone.safetensors", "metrics.jsonl", "crops.png", "curves.png"}
        assert all((tmp_path / "run" / name).is_file() for name in announced)


def test_a_warm_up_as_long_as_the_training_is_remarked_on(tiny_beton, tmp_path, monkeypatch, capfd):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("idmm_fast.train.pretraining.make_loader", stop)
    monkeypatch.setattr("idmm_fast.train.finetuning.create_backbone", stop)
    for train, schema in ((pretrain, PRETRAIN), (finetune, FINETUNE)):
        for warmup, times in ((2, 1), (3, 1), (1.5, 0)):
            with pytest.raises(KeyboardInterrupt):
                train(tiny_config(tiny_beton, tmp_path, schema, training__epochs=2, training__warmup_epochs=warmup))
            assert (
                capfd.readouterr().err.count(
                    f"training.warmup_epochs {warmup} is not below training.epochs 2: the learning rate will only rise"
                )
                == times
            )


SLOW = ("torch", "torchvision", "sklearn", "scipy", "timm", "numba", "ffcv", "matplotlib", "pandas")
# (script, arguments, exit code, what is said)
MISTAKES = [
    ("train_idmm.py", "--help", 0, "--training.epochs="),
    ("train_idmm.py", "--training.epoch=3", 1, "Did you mean 'training.epochs'?"),
    ("train_idmm.py", "--config nowhere.yaml", 1, "nowhere.yaml does not exist"),
    (
        "train_idmm.py",
        "--config rn_configs/pets.yaml --data.train=nowhere.beton",
        1,
        "data.train: nowhere.beton does not",
    ),
    (
        "train_idmm.py",
        "--config rn_configs/finetune/pets.yaml",
        1,
        "is a configuration of idmm-fast finetune",
    ),
    ("finetune.py", "--help", 0, "--progressive.stages="),
    ("finetune.py", "--config rn_configs/finetune/pets.yaml --training.lr=fast", 1, "'fast' is not a number"),
    ("finetune.py", "--config rn_configs/finetune/pets.yaml --init runs/nowhere", 1, "runs/nowhere does not exist"),
    ("finetune.py", "--config rn_configs/finetune/own.yaml --data.train=x.beton", 1, "data.test is required"),
    ("finetune.py", "--config rn_configs/finetune/pets.yaml --folds 0", 1, "--folds 0: it is at least 2"),
    ("finetune.py", "--config rn_configs/finetune/pets.yaml --folds=1", 1, "--folds 1: it is at least 2"),
    ("finetune.py", "--config rn_configs/finetune/pets.yaml --folds few", 1, "--folds is a number of folds"),
    ("evaluate.py", "--help", 0, "--knn.temperature="),
    ("evaluate.py", "--checkpoint runs/nowhere", 1, "runs/nowhere does not exist; --checkpoint is a run folder"),
    ("evaluate.py", "--checkpoints runs/nowhere", 1, "there is no key 'checkpoints'"),
    ("compare.py", "--help", 0, "--finetune-budget"),
    ("compare.py", "report --help", 0, "--page"),
    ("compare.py", "--datasets nowhere --methods idmm", 1, "nowhere_train.beton does not exist"),
    ("compare.py", "--datasets nowhere --methods idmm --config nowhere.yaml", 1, "nowhere.yaml does not exist"),
    ("compare.py", "--datsets nowhere", 2, "--datasets"),
    ("compare.py", "report --out nowhere", 1, "nowhere does not exist"),
    ("benchmark.py", "--help", 0, "end_to_end"),
    ("benchmark.py", "loader --help", 0, "--peers"),
    ("benchmark.py", "loader --worker=x", 2, "a whole number, at least 1, not x"),
    ("benchmark.py", "loader --beton nowhere.beton", 1, "nowhere.beton does not exist"),
    ("benchmark.py", "step --options [1]", 2, "'[1]' is no JSON object"),
    ("benchmark.py", "step --options {depth:6}", 2, "'{depth:6}' is no JSON object"),
    ("write_datasets.py", "--ds folder --name data/mine", 2, "their folder is --out"),
    ("analyze.py", "--help", 0, "updates"),
    ("analyze.py", "updates --help", 0, "--epochs"),
    ("analyze.py", "updates --config nowhere.yaml", 1, "nowhere.yaml does not exist"),
    ("demo.py", "--help", 0, "--seeds"),
    ("demo.py", "--seeds 1", 2, "no spread"),
    ("demo.py", "--epochs 2", 1, "there is no key 'epochs'. Did you mean 'training.epochs'?"),
    ("demo.py", "--seed=2", 1, "there is no key 'seed'. Did you mean 'training.seed'?"),
    ("demo.py", "--training.epoch=2", 1, "Did you mean 'training.epochs'?"),
    ("demo.py", "--training.epochs", 1, "--training.epochs needs a value"),
    ("demo.py", "--training.epochs=many", 1, "training.epochs: 'many' is not a whole number"),
]


def test_mistakes_are_told_before_anything_slow_is_imported():
    """All in one process, which has imported none of SLOW at its end."""
    program = (
        "import json, sys; from helpers import run_script; found = [];\n"
        "for script, args, _, _ in json.load(sys.stdin):\n"
        "    shown = run_script(script, *args.split()); found.append([shown.returncode, shown.stdout + shown.stderr])\n"
        f"json.dump([found, [name for name in {SLOW} if name in sys.modules]], sys.stdout)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        input=json.dumps(MISTAKES),
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    found, imported = json.loads(done.stdout)
    assert imported == []
    for (script, args, wanted, says), (code, shown) in zip(MISTAKES, found):
        assert (script, args, code) == (script, args, wanted), shown
        assert says in shown, (script, args)
        assert wanted != 1 or shown.startswith("error: "), (script, args)


def test_errors_become_a_message_and_an_exit_code(capsys):
    def end(error):
        def script(argv):
            raise error

        with pytest.raises(SystemExit) as stop:
            cli.run(script, [])
        return stop.value.code

    assert end(ConfigError("no")) == "error: no"
    assert end(OSError("disk")) == "error: disk"
    assert end(Stopped("stopped")) == 130
    assert capsys.readouterr().err == "stopped\n"
    with pytest.raises(KeyError):
        cli.run(lambda argv: {}["a bug keeps its traceback"], [])
    assert cli.run(lambda argv: None, []) is None
    with pytest.raises(SystemExit) as stop:
        cli.run(lambda argv: 1, [])
    assert stop.value.code == 1


@pytest.mark.parametrize(("labels", "verb"), [([-1, -1], "embed"), ([0, 0], "embed"), ([0, -1, 1], "finetune")])
def test_what_comes_next_is_what_the_images_have_labels_for(tmp_path, photos, labels, verb):
    split = Split(photos[: len(labels)], labels, ["a", "b"])
    beton = write_beton(tmp_path / "my train.beton", split, dataset="x", name="train", mode="raw", quiet=True).path
    cfg = SimpleNamespace(data=SimpleNamespace(train=str(beton), test=None))
    first, *_ = _next_commands("runs/x", str(beton), cfg)
    assert first.startswith(f"next: idmm-fast {verb} ")
    assert f"'{beton}'" in first  # as a shell reads it
