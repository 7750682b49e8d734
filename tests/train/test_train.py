"""Training: the loss falls, resume changes nothing, signals are obeyed, fine-tuning takes over what was learnt."""

import json
import math
import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers import FINETUNE, ROOT, TINY_VIT, photographs, read_losses, run_script, tiny_config, train_command
from PIL import Image

from idmm_fast.beton import open_beton
from idmm_fast.config import ConfigError
from idmm_fast.loader import MultiCropLoader, Views
from idmm_fast.losses import instance_loss
from idmm_fast.methods import IDMM
from idmm_fast.models import Normalize, create_backbone, init_head, load_backbone
from idmm_fast.train import checkpoint, throughput
from idmm_fast.train.finetuning import Classifier, choose_rows, finetune, sample_mixup
from idmm_fast.train.pretraining import pretrain
from idmm_fast.train.schedule import learning_rate


def test_schedule_warms_up_from_zero_and_ends_at_zero():
    rates = [learning_rate(s, 100, 10, 1.0) for s in range(100)]
    assert rates[0] == 0
    assert rates[5] == pytest.approx(0.5)
    assert rates[10] == 1
    assert rates[55] == pytest.approx(0.5)
    assert rates[99] == pytest.approx((1 + math.cos(math.pi * 89 / 90)) / 2)
    assert all(a > b for a, b in zip(rates[10:], rates[11:]))


def test_forward_is_the_sum_of_the_groups_means():
    """One forward over all views, against the definition: group by group."""
    torch.manual_seed(0)
    model = IDMM(create_backbone("vit_tiny_patch16_224", 32, options=TINY_VIT), 50, smoothing=0.1).eval()
    images = [torch.randint(0, 256, (n, 3, 32, 32), dtype=torch.uint8) for n in (4, 8)]
    a, b = ([torch.randint(0, 50, (n,)) for n in (4, 8)] for _ in range(2))
    lam = [torch.rand(n) for n in (4, 8)]
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.228, 0.224, 0.225]).view(3, 1, 1)
    wanted = sum(
        instance_loss(model.head(model.backbone((x / 255.0 - mean) / std)), i, j, w, 0.1)
        for x, i, j, w in zip(images, a, b, lam)
    )
    assert torch.isclose(model(images, a, b, lam), wanted, atol=1e-5)
    assert torch.allclose(
        Normalize()(images[0]),
        (images[0] / 255.0 - mean) / torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1),
        atol=1e-5,
    )


@pytest.fixture(scope="module")
def run(tiny_beton, tmp_path_factory):
    """A pretraining of 30 epochs that others look at."""
    return pretrain(
        tiny_config(tiny_beton, tmp_path_factory.mktemp("run") / "run", training__epochs=30, training__lr=4e-3)
    )


def test_pretraining_learns(run):
    curve = read_losses(run)
    assert len(curve) == 120
    assert curve[:4].mean() == pytest.approx(2 * math.log(64), rel=0.03)  # two groups, 64 classes, nothing known yet
    assert curve[-8:].mean() < 0.94 * 2 * math.log(64)  # and 120 steps later it is better than a guess


def test_run_folder_holds_all_that_is_promised(run):
    for name in (
        "config.yaml",
        "metrics.jsonl",
        "crops.png",
        "curves.png",
        "backbone.safetensors",
        "checkpoints",
        "events",
    ):
        assert (run / name).exists(), name
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(120))
    assert all({"epoch", "step", "loss", "lr", "images_per_s", "data_wait"} <= set(line) for line in lines)
    assert all(0 <= line["data_wait"] <= 1 for line in lines)
    assert lines[-1]["epoch"] == 29
    assert yaml.safe_load((run / "config.yaml").read_text())["training"]["epochs"] == 30
    assert list((run / "events").glob("events.out.tfevents*"))
    assert np.asarray(Image.open(run / "crops.png")).std() > 20
    assert len(checkpoint.listing(run / "checkpoints")) == 2


def test_checkpoints_load_without_unpickling(run):
    state = torch.load(checkpoint.listing(run / "checkpoints")[-1], weights_only=True)
    assert {"model", "optimizer", "step", "config"} <= set(state)


def cut_back(folder, epoch):
    """Make the folder look as it did after `epoch` epochs, as far as checkpoints go; metrics keep later lines, as after a kill."""
    for path in checkpoint.listing(folder / "checkpoints"):
        if int(path.stem.split("_")[1]) >= epoch:
            path.unlink()


@pytest.mark.parametrize("options", [{}, {"model__drop_path": 0.3}], ids=["plain", "drop-path"])
def test_resumed_run_equals_the_one_never_stopped_to_the_last_bit(tiny_beton, tmp_path, options):
    """CPU, fp32, one thread layout: the same kernels on the same numbers in the same order, so bit for bit."""
    options = options | {"training__keep_checkpoints": 100}
    whole = pretrain(tiny_config(tiny_beton, tmp_path / "whole", **options))
    for epoch in (1, 2, 3):
        other = tiny_config(tiny_beton, tmp_path / "other", training__resume="auto", **options)
        folder = pretrain(other)
        cut_back(folder, epoch)
        (folder / "backbone.safetensors").unlink()
        again = pretrain(other)
        assert np.array_equal(read_losses(again), read_losses(whole))
        assert (again / "backbone.safetensors").read_bytes() == (whole / "backbone.safetensors").read_bytes()


@pytest.fixture(scope="module")
def whole(tiny_beton, tmp_path_factory):
    """The losses of the command's run, never stopped, in a process of its own: elsewhere memory lies otherwise, and with it the last bit."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    subprocess.run(train_command(tiny_beton, folder), check=True, capture_output=True, timeout=120)
    return read_losses(folder)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_checkpoints_in_mid_epoch_and_resume_goes_on(tiny_beton, tmp_path, number, whole):
    """Stopped by a signal at some step; resumed, the curve is that of the run never stopped, bit for bit."""
    run = train_command(tiny_beton, tmp_path / "run")
    process = subprocess.Popen(run, stderr=subprocess.PIPE, text=True, stdout=subprocess.DEVNULL)
    metrics = tmp_path / "run" / "metrics.jsonl"
    while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") >= 5):
        time.sleep(0.005)
    process.send_signal(number)
    _, message = process.communicate(timeout=60)
    assert process.returncode == 128 + number, message
    assert "checkpoint" in message
    assert "resume=auto" in message
    done = metrics.read_text().count("\n")
    assert 5 <= done < 128
    assert json.loads(metrics.read_text().splitlines()[-1])["step"] == done - 1
    subprocess.run(run, check=True, capture_output=True, timeout=120)
    assert np.array_equal(read_losses(tmp_path / "run"), whole)


def test_damaged_newest_checkpoint_falls_back_to_the_one_before(tiny_beton, tmp_path):
    cfg = tiny_config(tiny_beton, tmp_path / "run", training__resume="auto")
    folder = pretrain(cfg)
    wanted = read_losses(folder)
    newest = checkpoint.listing(folder / "checkpoints")[-1]
    content = newest.read_bytes()
    at = len(content) // 2
    for damaged in (content[:1000], content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :], b""):
        newest.write_bytes(damaged)
        with pytest.warns(UserWarning, match="damaged"):
            pretrain(cfg)
        assert np.array_equal(read_losses(folder), wanted)


def test_a_run_is_neither_overwritten_nor_continued_as_another(tiny_beton, tmp_path):
    pretrain(tiny_config(tiny_beton, tmp_path / "run", training__epochs=1))
    with pytest.raises(ConfigError, match="holds a run already"):
        pretrain(tiny_config(tiny_beton, tmp_path / "run", training__epochs=1))
    with pytest.raises(ConfigError, match=r"begun with training\.lr"):
        pretrain(
            tiny_config(tiny_beton, tmp_path / "run", training__epochs=1, training__lr=0.5, training__resume="auto")
        )


def test_a_loss_that_is_not_finite_stops_with_a_sentence(tiny_beton, tmp_path):
    cfg = tiny_config(
        tiny_beton, tmp_path / "run", training__lr=1e30, training__warmup_epochs=0, training__max_nonfinite_steps=3
    )
    with pytest.raises(
        FloatingPointError,
        match=r"the loss became .* 3 times in a row; the last batch held the rows \d+, .*tiny\.beton",
    ):
        pretrain(cfg)
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["nonfinite_steps"] for line in lines if "nonfinite_steps" in line] == [1, 2, 3]


def test_a_step_whose_loss_is_not_finite_is_skipped_and_counted(tiny_beton, tmp_path, monkeypatch):
    """The weights before and after it are the same to the last bit; the step before it moved them."""
    seen, forward = [], IDMM.forward

    def spoiled(self, *args):
        seen.append(torch.cat([p.detach().flatten() for p in self.parameters()]))
        return forward(self, *args) * (float("nan") if len(seen) == 6 else 1.0)

    monkeypatch.setattr(IDMM, "forward", spoiled)
    folder = pretrain(tiny_config(tiny_beton, tmp_path / "run"))
    assert not torch.equal(seen[4], seen[5])
    assert torch.equal(seen[5], seen[6])
    assert not torch.equal(seen[6], seen[7])
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(16))
    assert [line["step"] for line in lines if "loss" not in line] == [5]
    assert lines[5]["nonfinite_steps"] == 1
    assert (folder / "backbone.safetensors").exists()


def test_checkpoints_by_the_clock_are_in_mid_epoch_and_resume_is_exact(tiny_beton, tmp_path):
    whole = read_losses(pretrain(tiny_config(tiny_beton, tmp_path / "whole", training__batch_size=8)))
    cfg = tiny_config(
        tiny_beton,
        tmp_path / "run",
        training__batch_size=8,
        training__checkpoint_minutes=1e-9,
        training__resume="auto",
        training__keep_checkpoints=100,
    )
    folder = pretrain(cfg)
    steps = [int(p.stem.rsplit("_", 1)[1]) for p in checkpoint.listing(folder / "checkpoints")]
    assert steps == list(range(1, 33))
    for path in checkpoint.listing(folder / "checkpoints")[13:]:
        path.unlink()
    pretrain(cfg)
    assert np.array_equal(read_losses(folder), whole)


@pytest.mark.timeout(280)
def test_compiled_bf16_training_follows_eager_fp32(tiny_beton, tmp_path):
    """Within 2 % at every step of the first epochs: bf16 has 8 bits of mantissa."""
    eager = pretrain(tiny_config(tiny_beton, tmp_path / "eager", training__batch_size=24))
    fast = pretrain(
        tiny_config(
            tiny_beton, tmp_path / "fast", training__batch_size=24, training__compile=True, training__amp="bf16"
        )
    )
    assert np.abs(read_losses(fast) / read_losses(eager) - 1).max() < 0.02


def test_fused_training_equals_dense_training(tiny_beton, tmp_path, capfd):
    """The same curve to 1e-4, which of the two it is being said."""
    curves = {}
    for kind in ("dense", "fused"):
        curves[kind] = read_losses(
            pretrain(tiny_config(tiny_beton, tmp_path / kind, head__loss=kind, training__epochs=6))
        )
    assert np.abs(curves["fused"] / curves["dense"] - 1).max() < 1e-4
    automatic = pretrain(tiny_config(tiny_beton, tmp_path / "auto", head__max_dense_mb=0, training__epochs=1))
    assert np.abs(read_losses(automatic)[:1] / curves["dense"][:1] - 1).max() < 1e-4
    shown = "".join(capfd.readouterr())
    assert shown.count("dense loss (dense logits") == 1
    assert shown.count("fused loss (dense logits") == 2


def test_a_sampled_head_trains_and_resumes_to_the_last_bit(tiny_beton, tmp_path, capfd):
    """Half of the images that are not in the batch take part, and each stands for two, so that the loss begins where the full one does."""
    options = {"head__sample_rate": 0.5, "training__resume": "auto", "training__epochs": 6}
    folder = pretrain(tiny_config(tiny_beton, tmp_path / "run", **options))
    curve = read_losses(folder)
    assert "0.5 of the others" in "".join(capfd.readouterr())
    assert curve[0] == pytest.approx(2 * math.log(64), rel=0.05)  # each stands for two
    assert curve[-4:].mean() < curve[:4].mean()
    for path in checkpoint.listing(folder / "checkpoints")[1:]:
        path.unlink()
    pretrain(tiny_config(tiny_beton, tmp_path / "run", **options))
    assert np.array_equal(read_losses(folder), curve)
    with pytest.raises(ConfigError, match=r"head\.loss=dense does not go"):
        pretrain(tiny_config(tiny_beton, tmp_path / "other", head__loss="dense", head__sample_rate=0.5))


def test_a_trial_stops_after_so_many_steps(tiny_beton, tmp_path):
    folder = pretrain(tiny_config(tiny_beton, tmp_path / "run", training__max_steps=3))
    assert len(read_losses(folder)) == 3
    assert not (folder / "backbone.safetensors").exists()
    assert checkpoint.listing(folder / "checkpoints") == []


CONFIGS = sorted(p for p in (ROOT / "rn_configs").glob("*.yaml") if not p.stem.startswith(("demo", "compare")))


@pytest.mark.parametrize(
    "path", [pytest.param(p, id=p.stem, marks=[] if p.stem.startswith("pets") else pytest.mark.slow) for p in CONFIGS]
)
def test_every_config_trains(path, tiny_beton, tmp_path):
    """Two steps of each; those of one dataset always, the others, which share their bases, with `make test-slow`."""
    script = "finetune.py" if path.stem.endswith("_finetune") else "train_idmm.py"
    shown = run_script(
        script,
        "--config",
        path,
        f"--data.train={tiny_beton}",
        f"--data.test={tiny_beton}",
        "--training.batch_size=2",
        "--training.max_steps=2",
        "--training.compile=false",
        "--training.device=cpu",
        f"--logging.run_dir={tmp_path / 'run'}",
    )
    assert shown.returncode == 0, shown.stderr
    assert len(read_losses(tmp_path / "run")) == 2
    assert np.isfinite(read_losses(tmp_path / "run")).all()


def test_updates_of_class_weights_are_looked_at(tiny_beton, tmp_path):
    """Four ways; without smoothing the classes out of the batch fall to rest as p falls, with it they keep the closed form's share."""
    from idmm_fast.studies.class_updates import summary, updates

    result = updates(
        tiny_config(tiny_beton, tmp_path / "x"), tmp_path / "out", images=64, epochs=40, batch_size=8, head_lr=10.0
    )
    assert set(result) == {"plain", "label smoothing", "CutMix", "both"}
    away = {way: values["away"][-1] for way, values in result.items()}
    assert away["label smoothing"] > 0
    assert all((v["away"] < v["visit"]).all() for v in result.values())
    assert np.asarray(Image.open(tmp_path / "out" / "updates.png")).std() > 10
    assert "closed form" in summary(result)


def test_finetuning_beats_chance_and_reports(tiny_beton, run, tmp_path):
    result = finetune(tiny_config(tiny_beton, tmp_path / "f", FINETUNE, training__epochs=30, model__init=str(run)))
    assert result["top1"] > 60  # four colours; chance is 25
    assert result["top5"] == 100
    assert json.loads((tmp_path / "f" / "result.json").read_text()) == result
    curve = read_losses(tmp_path / "f")
    assert curve[-8:].mean() < curve[:8].mean()


def test_the_best_state_is_kept_beside_the_last(tiny_beton, tmp_path):
    cfg = tiny_config(
        tiny_beton, tmp_path / "f", FINETUNE, training__epochs=5, training__evaluate_every=1, training__lr=1e-2
    )
    result = finetune(cfg)
    lines = [json.loads(line) for line in (tmp_path / "f" / "metrics.jsonl").read_text().splitlines()]
    tested = {line["epoch"]: line["top1"] for line in lines if "top1" in line}
    assert set(tested) == set(range(5))
    assert result["best_top1"] == max(tested.values())
    assert result["top1"] == tested[4]
    best = checkpoint.load(tmp_path / "f" / "checkpoints" / "best.pt")
    assert (best["top1"], best["epoch"]) == (result["best_top1"], result["best_epoch"])
    load_backbone(
        create_backbone("vit_tiny_patch16_224", 32, options=TINY_VIT), tmp_path / "f" / "checkpoints" / "best.pt"
    )


def test_the_ladder_climbs_and_goes_on_where_it_was_stopped(tiny_beton, run, tmp_path):
    """Two stages with another resolution: the second begins with what the first ended with, classifier and all; a stage that is done is not done again."""
    script = [
        "finetune.py",
        f"--data.train={tiny_beton}",
        f"--data.test={tiny_beton}",
        "--model.name=vit_tiny_patch16_224",
        f"--model.options={TINY_VIT}",
        "--model.image_size=32",
        "--training.lr=2e-3",
        "--training.amp=fp32",
        "--training.compile=false",
        "--training.batch_size=16",
        "--progressive.stages=[{training.epochs: 8}, {model.image_size: 64, training.epochs: 2, training.batch_size: 8, training.lr: 1.0e-6}]",
        "--init",
        run,
        "--stages",
        f"--logging.run_dir={tmp_path / 'l'}",
    ]
    shown = run_script(*script)
    assert shown.returncode == 0, shown.stderr
    one, two = (tmp_path / "l" / f"stage_{k}" for k in (1, 2))
    results = json.loads((tmp_path / "l" / "result.json").read_text())
    assert [json.loads((f / "result.json").read_text()) for f in (one, two)] == results
    assert shown.stdout.count("top-1") == 2
    first, second = (checkpoint.newest(f / "checkpoints")[1]["model"] for f in (one, two))
    for key in (
        "head.weight",
        "backbone.blocks.0.attn.qkv.weight",
    ):  # a rate of nearly nothing: the second stage is where the first ended
        assert torch.allclose(first[key], second[key], atol=1e-4)
        assert not torch.equal(first[key], second[key])
    assert second["backbone.pos_embed"].shape[1] == 1 + 64
    for path in checkpoint.listing(two / "checkpoints"):
        path.unlink()
    before = (one / "metrics.jsonl").read_bytes()
    assert run_script(*script).returncode == 0
    assert json.loads((tmp_path / "l" / "result.json").read_text()) == results
    assert (one / "metrics.jsonl").read_bytes() == before
    trial = run_script(
        *script, "--training.max_steps=2"
    )  # it had written result.json and then missed the weights of stage 1
    assert trial.returncode == 1
    assert "does not go with --stages" in trial.stderr
    wrong = run_script(*script, "--progressive.stages=[{model.img_size: 64}]")
    assert wrong.returncode == 1
    assert "model.image_size" in wrong.stderr


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        ("vit_tiny_patch16_224", TINY_VIT, 32),
        ("pvt_v2_b0", {"depths": [1, 1, 1, 1]}, 32),
        (
            "swin_tiny_patch4_window7_224",
            {"depths": [1, 1], "num_heads": [2, 4], "embed_dim": 24, "window_size": 4},
            32,
        ),
    ],
)
def test_a_finetuned_model_is_one_of_timms(name, options, size, tiny_beton, tmp_path):
    """model.safetensors and config.json, loaded by timm alone, give the logits that the trained classifier gives."""
    import timm

    cfg = tiny_config(
        tiny_beton,
        tmp_path / "f",
        FINETUNE,
        model__name=name,
        model__options=options,
        model__image_size=size,
        training__epochs=1,
    )
    finetune(cfg)
    trained = Classifier(
        create_backbone(name, size, options=options),
        init_head(timm.create_model(name, num_classes=0, **options).num_features, 4),
    )
    trained.load_state_dict(checkpoint.newest(tmp_path / "f" / "checkpoints")[1]["model"])
    theirs = timm.create_model(f"local-dir:{tmp_path / 'f'}", pretrained=True)
    images = torch.randint(0, 256, (3, 3, size, size), dtype=torch.uint8)
    prepared = theirs.pretrained_cfg
    assert prepared["input_size"] == (3, size, size) or list(prepared["input_size"]) == [3, size, size]
    mean, std = (torch.tensor(prepared[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    with torch.no_grad():
        assert torch.allclose(trained.eval()(images), theirs.eval()((images / 255 - mean) / std), atol=1e-4)


def test_weights_of_others_are_a_beginning(tiny_beton, tmp_path):
    """timm's own state dicts, with or without a wrapping, at another resolution and with another head; a file that is neither is a sentence."""
    import timm

    own = timm.create_model("vit_tiny_patch16_224", num_classes=10, img_size=64, **TINY_VIT)
    torch.save(own.state_dict(), tmp_path / "plain.pth")
    torch.save({"model": own.state_dict()}, tmp_path / "wrapped.pth")
    for name in ("plain", "wrapped"):
        backbone = create_backbone("vit_tiny_patch16_224", 32, options=TINY_VIT)
        load_backbone(backbone, tmp_path / f"{name}.pth")
        assert torch.equal(backbone.blocks[1].mlp.fc1.weight, own.blocks[1].mlp.fc1.weight)
    (tmp_path / "bad.pth").write_bytes(b"no weights")
    with pytest.raises(ValueError, match="damaged or holds more"):
        load_backbone(backbone, tmp_path / "bad.pth")
    with pytest.raises(ValueError, match="a classifier for 10 classes, and 4 classes are wanted"):
        finetune(
            tiny_config(
                tiny_beton, tmp_path / "f", FINETUNE, model__init=str(tmp_path / "plain.pth"), model__init_head=True
            )
        )


def test_features_are_looked_at_while_training(tiny_beton, tmp_path):
    """Every second epoch and at the end; the numbers are those of evaluate.py, and the curve is the one without looking."""
    changes = ["--model.drop_path=0.2", "--training.batch_size=16", "--training.epochs=3", "--training.resume=no"]
    base = [*train_command(tiny_beton, tmp_path / "run")[1:], *changes]
    shown = run_script(
        Path(base[0]).name, *base[1:], f"--data.test={tiny_beton}", "--online_eval.every=2", "--online_eval.linear=true"
    )
    assert shown.returncode == 0, shown.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines if "knn20" in line] == [1, 2]
    judged = run_script("evaluate.py", "--checkpoint", tmp_path / "run", "--logging.run_dir=null")
    assert judged.stdout.strip() == "  ".join(f"{k} {lines[-1][k]:.2f} %" for k in ("knn10", "knn20", "linear"))
    assert run_script(Path(base[0]).name, *base[1:], f"--logging.run_dir={tmp_path / 'plain'}").returncode == 0
    assert np.array_equal(read_losses(tmp_path / "run"), read_losses(tmp_path / "plain"))


def test_finetuning_resumes_to_the_last_bit(tiny_beton, tmp_path):
    cfg = tiny_config(tiny_beton, tmp_path / "f", FINETUNE, training__resume="auto", training__keep_checkpoints=100)
    first = finetune(cfg)
    wanted = read_losses(tmp_path / "f")
    cut_back(tmp_path / "f", 2)
    again = finetune(cfg)
    assert again == first
    assert np.array_equal(read_losses(tmp_path / "f"), wanted)
    assert finetune(cfg) == first  # a finished run is judged again, not trained


def test_mixup_draws():
    draws = [sample_mixup(3, 0, step, 10, 0.5) for step in range(4000)]
    shares = np.array([s for s, _ in draws])
    assert shares.min() >= 0.5
    from scipy import stats

    assert stats.kstest(shares, lambda x: 2 * (stats.beta(0.5, 0.5).cdf(x) - 0.5)).pvalue > 1e-3
    assert all(sorted(p) == list(range(10)) for _, p in draws[:50])


def test_rows_per_class():
    labels = np.repeat([0, 1, 2], [10, 20, 30])
    rows = choose_rows(labels, 5, seed=1)
    assert np.bincount(labels[rows]).tolist() == [5, 5, 5]
    assert np.array_equal(rows, choose_rows(labels, 5, seed=1))
    assert not np.array_equal(rows, choose_rows(labels, 5, seed=2))
    assert choose_rows(labels, 0, 0).size == 60
    with pytest.raises(ConfigError, match="class 0 has 10"):
        choose_rows(labels, 11, 0)


def test_backbone_moves_to_another_resolution(tmp_path):
    """The class-token slot is kept, the grid resampled (a constant embedding stays constant), all else is taken as it is."""
    from idmm_fast.models import save_backbone

    small, large = (create_backbone("deit_tiny_patch16_224", s) for s in (112, 224))
    with torch.no_grad():
        small.pos_embed[:, 1:] = torch.linspace(-1, 1, 192)
    save_backbone(small, tmp_path / "b.safetensors")
    load_backbone(large, tmp_path / "b.safetensors")
    assert large.pos_embed.shape == (1, 1 + 14 * 14, 192)
    assert torch.allclose(large.pos_embed[:, 0], small.pos_embed[:, 0])
    assert torch.allclose(large.pos_embed[:, 1:], small.pos_embed[:, 1:2].expand(1, 196, 192), atol=1e-5)
    assert torch.equal(large.blocks[3].attn.qkv.weight, small.blocks[3].attn.qkv.weight)
    with pytest.raises(ValueError, match="does not fit"):
        load_backbone(create_backbone("pvt_v2_b0", 112), tmp_path / "b.safetensors")


def test_unknown_model_names_near_ones():
    with pytest.raises(ValueError, match="deit_tiny"):
        create_backbone("deit_tny_patch16_224", 112)


def test_pets_from_upstreams_layout_to_a_falling_loss(tmp_path):
    """write_datasets.py --ds pets, then train_idmm.py --config rn_configs/pets.yaml with everything made small."""
    lines = {"trainval": [], "test": []}
    (tmp_path / "raw" / "images").mkdir(parents=True)
    (tmp_path / "raw" / "annotations").mkdir()
    for k, photo in enumerate(photographs(48, seed=5)):
        breed = ("Abyssinian", "beagle", "Bengal")[k % 3]
        Image.fromarray(photo).save(tmp_path / "raw" / "images" / f"{breed}_{k}.jpg")
        lines["test" if k >= 40 else "trainval"].append(f"{breed}_{k} {k % 3 + 1} 1 1")
    for split, rows in lines.items():
        (tmp_path / "raw" / "annotations" / f"{split}.txt").write_text("\n".join(rows) + "\n")
    converted = run_script("write_datasets.py", "--ds", "pets", "--root", tmp_path / "raw", "--out", tmp_path / "data")
    assert converted.returncode == 0, converted.stderr
    assert len(open_beton(tmp_path / "data" / "pets_train.beton")) == 40
    shown = run_script(
        "train_idmm.py",
        "--config",
        ROOT / "rn_configs" / "pets.yaml",
        "--training.epochs=25",
        "--training.batch_size=20",
        "--training.lr=2e-3",
        "--model.name=vit_tiny_patch16_224",
        f"--model.options={TINY_VIT | {'patch_size': 16}}",
        "--training.compile=false",
        f"--data.train={tmp_path / 'data' / 'pets_train.beton'}",
        f"--logging.run_dir={tmp_path / 'run'}",
    )
    assert shown.returncode == 0, shown.stderr
    assert "done" in shown.stdout
    curve = read_losses(tmp_path / "run")
    assert curve[-6:].mean() < 0.97 * 2 * math.log(40)  # two groups, 40 images


@pytest.mark.parametrize("script", ["train_idmm.py", "finetune.py"])
def test_errors_are_sentences(script, tmp_path):
    result = run_script(script, "--config", ROOT / "rn_configs" / "nope.yaml")
    assert result.returncode == 1
    assert result.stderr.startswith("error:")
    assert "Traceback" not in result.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_twenty_kills_change_nothing(tiny_beton, tmp_path):
    """kill -9 at random moments, a checkpoint every few steps: the curve and the weights are those of the run never stopped, bit for bit."""
    rng = np.random.default_rng(0)
    shape = [
        "--training.epochs=40",
        "--training.checkpoint_minutes=1e-6",
        "--training.keep_checkpoints=3",
        "--model.drop_path=0.1",
    ]
    subprocess.run(
        [*train_command(tiny_beton, tmp_path / "whole"), *shape], check=True, capture_output=True, timeout=280
    )
    run, kills = [*train_command(tiny_beton, tmp_path / "run"), *shape], 0
    metrics = tmp_path / "run" / "metrics.jsonl"
    while kills < 20:
        before = metrics.read_text().count("\n") if metrics.exists() else 0
        process = subprocess.Popen(run, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        while process.poll() is None and not (metrics.exists() and metrics.read_text().count("\n") > before):
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.25))
        assert process.poll() is None, "the run was over before it was killed 20 times"
        process.kill()
        process.wait()
        kills += 1
    subprocess.run(run, check=True, capture_output=True, timeout=280)
    assert np.array_equal(read_losses(tmp_path / "run"), read_losses(tmp_path / "whole"))
    assert (tmp_path / "run" / "backbone.safetensors").read_bytes() == (
        tmp_path / "whole" / "backbone.safetensors"
    ).read_bytes()
    assert not list((tmp_path / "run").rglob("*.tmp"))


def test_a_full_disk_is_a_sentence_and_costs_nothing(tiny_beton, tmp_path, monkeypatch):
    """The disk is full from the third checkpoint on: those before are kept whole, nothing half-written is left, and the run goes on from them."""
    whole = read_losses(pretrain(tiny_config(tiny_beton, tmp_path / "whole")))
    synced, fsync = [], os.fsync

    def full(number):
        synced.append(number)
        if len(synced) > 4:  # a checkpoint and its sum, twice
            raise OSError(28, "No space left on device")
        fsync(number)

    monkeypatch.setattr(checkpoint.os, "fsync", full)
    cfg = tiny_config(tiny_beton, tmp_path / "run", training__resume="auto")
    with pytest.raises(OSError, match=r"could not be written: .*No space left.*make room"):
        pretrain(cfg)
    kept = checkpoint.listing(tmp_path / "run" / "checkpoints")
    assert len(kept) == 2
    assert all(checkpoint.load(path) for path in kept)
    assert not list(tmp_path.rglob("*.tmp"))
    monkeypatch.setattr(checkpoint.os, "fsync", fsync)
    assert np.array_equal(read_losses(pretrain(cfg)), whole)


def test_waiting_for_data_is_advised_about_once(jpg_beton, monkeypatch, capsys):
    monkeypatch.setattr(throughput, "PATIENCE", 0.0)
    loader = MultiCropLoader(jpg_beton, 8, num_workers=1, views=[Views(2, 16)])
    meter = throughput.Throughput(loader, 80, 0, "train")
    meter.end_epoch()
    assert capsys.readouterr().out == ""
    for _ in range(2):
        loader.waited += 10
        meter.end_epoch()
    shown = capsys.readouterr().out
    assert shown.count("spent waiting for data") == 1
    assert "--mode raw" in shown
    assert "--max-resolution 64" in shown
    assert ("--data.num_workers, now 1" in shown) == (len(os.sched_getaffinity(0)) > 1)
