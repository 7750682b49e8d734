"""What the scripts say at the end, and at the beginning, of a run."""

import pytest
from helpers import FINETUNE, PRETRAIN, run_script, tiny_config

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
        == f"{tmp_path / 'run'}: a trial of at most 1 steps, as training.max_steps says; no weights were written"
    )
    assert not list((tmp_path / "run").rglob("*.safetensors"))
    if script == "train_idmm.py":
        done = run_script(script, *args, "--training.resume=auto").stdout.splitlines()[-1]
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
