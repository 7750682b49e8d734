"""Commands and files of 0.2.0 still work: every option of its pages, its road, the betons that it and others wrote."""

import lzma
import re
import shlex

import numpy as np
import pytest
from helpers import ROOT, TINY_VIT, run_script

from idmm_fast import config
from idmm_fast.beton import open_beton
from idmm_fast.beton.decode import decode_rows
from idmm_fast.commands import benchmark, compare, convert, evaluate, finetune, pretrain

# The commands of the pages of 0.2.0, one for each set of options.
COMMANDS = """
analyze.py updates --config rn_configs/demo.yaml
benchmark.py loader --images DIR --peers official,ffcv --workers 1 --limit 256 --plot p.png --repeats 5 --json x.json
benchmark.py end_to_end --images DIR --mode jpg --views-on cpu --workers 0 --batch 16 --steps 6 --size 112 --json x.json
benchmark.py gpu --images DIR --json gpu.json --limit 256 --small
benchmark.py head --classes 1281167 --batch 32 --steps 20 --json docs/data/benchmark_head.json
benchmark.py loss --batch 256 --dim 192 --classes 1000 --repeats 7 --json docs/data/benchmark_loss.json
benchmark.py step --model NAME --options {} --batch 16 --instances 2040 --steps 4 --low auto --device auto --repeats 5
benchmark.py writer --images DIR --count 2000 --workers 0 --repeats 5 --json docs/data/benchmark_writer.json
compare.py --config rn_configs/compare/paper.yaml --datasets flowers --images 250 --methods random idmm --seeds 0 1 2
compare.py --datasets cifar10 --images 1000 --sampling balanced random --targets same flowers90 --methods idmm
compare.py --datasets dtd10 --methods idmm --budget 392x --finetune-budget 200x --data data --jobs 2 --out results
compare.py report --out results --page docs/results.md
demo.py --out runs/demo --seeds 3
evaluate.py --checkpoint runs/mine_deit_tiny --test data/mine_test.beton
finetune.py --config rn_configs/finetune/flowers.yaml --init runs/x --stages --logging.run_dir=runs/flowers_stages
finetune.py --config rn_configs/finetune/own.yaml --init runs/x --data.train=a.beton --data.test=b.beton
finetune.py --config rn_configs/finetune/pets.yaml --config rn_configs/finetune/backbones/t2t_vit_7.yaml --init runs/x
train_idmm.py --config rn_configs/flowers.yaml --config rn_configs/methods/dino.yaml --training.epochs=400
train_idmm.py --config rn_configs/own.yaml --data.train=data/mine_train.beton --training.max_steps=2
train_idmm.py --config rn_configs/pets.yaml --config rn_configs/backbones/t2t_vit_7.yaml --training.resume=auto
write_datasets.py --ds demo --name fashion --mode raw
write_datasets.py --ds dtd --split-list results/splits/dtd10.txt --name dtd10 --mode raw --max-resolution 128
write_datasets.py --ds folder --root my_images --name mine --test-fraction 0.2 --quality 90 --workers 0 --on-error skip
write_datasets.py --ds hf --name my_saved_dataset --out data
write_datasets.py --ds sin10k --root imagenet --per-class 10 --seed 0 --partial
write_datasets.py --ds sin10k-total --root imagenet --total 100 --subset 10
write_datasets.py --ds webdataset --shards 'shards/{000..011}.tar' --name mine
write_datasets.py --show data/mine_train.beton
write_datasets.py --verify data/mine_train.beton
""".strip().splitlines()

PARSERS = {"benchmark.py": benchmark.parse, "compare.py": compare.parse, "write_datasets.py": convert.parse}


class Understood(Exception):
    """Raised where a command has read its arguments, in place of its work."""


def stop(*_, **__):
    raise Understood


@pytest.fixture
def stopped_commands(monkeypatch):
    """The commands read all their arguments, and stop where the files that these name are looked for."""
    for module in (config, pretrain, finetune, evaluate):
        monkeypatch.setattr(module, "check_files", stop)
    monkeypatch.setattr(evaluate, "run_config", lambda _: ["--config", str(ROOT / "rn_configs" / "flowers.yaml")])
    monkeypatch.setattr("idmm_fast.studies.demo.run_demo", stop)


@pytest.mark.usefixtures("stopped_commands")
@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_of_0_2_0_is_understood(command):
    script, *arguments = shlex.split(command)
    for path in re.findall(r"(?:rn_configs|results)/\S+\.(?:yaml|txt)", command):
        assert (ROOT / path).is_file(), path
    if script in PARSERS:
        args = vars(PARSERS[script](arguments))
        assert args.get("test_share", 0) == (0.2 if "--test-fraction" in arguments else 0)
    else:
        with pytest.raises(Understood):
            pytest.fail(run_script(script, *arguments).stderr)


# ---- betons that older versions wrote: tests/cli/betons/VERSION_MODE.beton.xz and its sidecar


BETONS = ROOT / "tests" / "cli" / "betons"
VERSIONS = ("before_checksums", "0.2.0")  # 0.1.0 wrote the same bytes as 0.2.0


def picture(k):
    """What image `k` of the twelve was made of, uint8 (40 + 2 k, 56 - k, 3); its class is cold or warm, in turn."""
    rows, columns = np.mgrid[0 : 40 + 2 * k, 0 : 56 - k]
    return np.stack([20 + 2 * rows, 40 + 3 * columns, np.full_like(rows, 18 * k)], axis=2).astype(np.uint8)


def restore(name, folder):
    """An older beton and its sidecar, in `folder`."""
    path = folder / f"{name}.beton"
    path.write_bytes(lzma.decompress((BETONS / f"{name}.beton.xz").read_bytes()))
    path.with_suffix(".json").write_bytes((BETONS / f"{name}.json").read_bytes())
    return path


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("mode", ["raw", "jpg"])
def test_older_betons_hold_what_was_written(version, mode, tmp_path):
    beton = open_beton(restore(f"{version}_{mode}", tmp_path))
    written = np.random.default_rng(0).permutation(12)
    assert beton.classes == ["cold", "warm"]
    assert beton.label.tolist() == [k % 2 for k in written]
    for k, found in zip(written, decode_rows(beton, None)):
        assert found.shape == picture(k).shape
        assert np.abs(found.astype(int) - picture(k)).max() <= (0 if mode == "raw" else 6)
    assert bool(beton.sums.size) == (version != "before_checksums")
    shown = run_script("write_datasets.py", "--verify", beton.path)
    assert shown.returncode == 0, shown.stderr
    assert "cold 6, warm 6" in shown.stdout


@pytest.mark.integration
@pytest.mark.usefixtures("compiled_kernels", "without_pictures")
def test_the_road_of_0_2_0_with_its_betons(tmp_path, monkeypatch):
    """The commands of its README: pretraining, evaluation, fine-tuning, with betons of two versions."""
    monkeypatch.chdir(tmp_path)
    old, older = (restore(f"{version}_{mode}", tmp_path) for version, mode in (("0.2.0", "raw"), (VERSIONS[0], "jpg")))
    tiny = ["--model.name=vit_tiny_patch16_224", f"--model.options={TINY_VIT}", "--model.image_size=32"]
    tiny += ["--training.compile=false", "--training.batch_size=6", "--training.epochs=2", "--training.warmup_epochs=1"]
    own, tune = (ROOT / "rn_configs" / name for name in ("own.yaml", "finetune/own.yaml"))
    for script, *arguments in (
        ["train_idmm.py", "--config", own, f"--data.train={old}", "--logging.run_dir=run", *tiny],
        ["evaluate.py", "--checkpoint", "run", "--test", older],
        ["finetune.py", "--config", tune, "--init", "run", f"--data.train={older}", f"--data.test={old}", *tiny],
    ):
        shown = run_script(script, *arguments)
        assert shown.returncode == 0, shown.stderr
    assert (tmp_path / "run" / "backbone.safetensors").is_file()
    assert len(list((tmp_path / "runs").glob("*/result.json"))) == 1
