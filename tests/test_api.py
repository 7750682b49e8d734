"""The Python interface: docs/quickstart.md as it stands, only shorter; what is cached, what is written."""

import csv
import json
import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import ROOT, photographs
from PIL import Image

import idmm_fast
from idmm_fast.api import _write_features, convert
from idmm_fast.beton import open_beton
from idmm_fast.config import ConfigError
from idmm_fast.datasets import DatasetError
from idmm_fast.loader.image_files import ImageFiles
from idmm_fast.models import (
    Classifier,
    Normalize,
    create_backbone,
    feature_dim,
    init_head,
    load_backbone,
    load_trained,
    save_backbone,
)
from idmm_fast.train import checkpoint

PAGE = ROOT / "docs" / "quickstart.md"
TINY = {
    "name": "vit_tiny_patch16_224",
    "image_size": 32,
    "options": {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2},
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to work in, with my_images of two classes, train and test."""
    monkeypatch.setenv("IDMM_FAST_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    for k, photo in enumerate(photographs(20, seed=3)):
        path = tmp_path / "my_images" / ("test" if k >= 14 else "train") / "ab"[k % 2] / f"{k}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photo).save(path)
    (tmp_path / "new_images").mkdir()
    Image.fromarray(photographs(1)[0]).save(tmp_path / "new_images" / "new.png")
    return tmp_path


@pytest.mark.integration
def test_the_page_is_run(folder):
    """All Python of docs/quickstart.md, with an epoch where it says hundreds; the exports have a test of their own."""
    space = {}
    *blocks, last = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    for block in blocks:
        exec(re.sub(r"epochs=\d+", "epochs=1", block), space)
    assert re.findall(r"^\w+\.(\w+)\(", last, re.M) == ["export", "export"]
    assert space["features"].shape == (14, 192)
    assert space["result"]["test_images"] == 6
    assert [row["label"] in "ab" for row in space["rows"]] == [True]
    saved = np.load("features.npz")
    assert np.array_equal(saved["features"], space["features"])
    for file, label in zip(saved["files"], saved["labels"]):
        assert Path(file).parent.name == "ab"[label]


@pytest.mark.integration
def test_features_are_those_of_the_files_they_are_listed_with(folder):
    crops = {"groups": [{"count": 2, "scale": [0.5, 1.0]}]}
    run = idmm_fast.pretrain(
        "my_images", "run", TINY, epochs=1, training={"batch_size": 7, "compile": False}, crops=crops
    )
    features, files = idmm_fast.embed("my_images", run, "f.csv")
    assert sorted(files) == sorted(str(p) for p in Path("my_images/train").rglob("*.jpg"))
    one = folder / "one"
    (one / "x").mkdir(parents=True)
    (one / "x" / "y.jpg").write_bytes(Path(files[5]).read_bytes())
    alone, _ = idmm_fast.embed(one, run)
    assert np.allclose(alone[0], features[5], atol=1e-4)
    lines = Path("f.csv").read_text().splitlines()
    assert len(lines) == 14
    assert lines[5].startswith(f'"{files[5]}",')
    assert np.allclose([float(x) for x in lines[5].split(",")[2:]], features[5], rtol=1e-5)


def test_a_folder_is_converted_once_and_again_when_it_changes(folder, capsys):
    first = convert("my_images")
    assert set(first) == {"train", "test"}
    assert "14 images" in capsys.readouterr().out
    assert convert("my_images") == first
    assert capsys.readouterr().out == ""
    one, other = sorted(Path("my_images/train/a").iterdir())[:2]
    times = os.stat(one)
    shutil.copyfile(other, one)
    os.truncate(one, times.st_size)
    os.utime(one, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert convert("my_images") != first  # the same sizes and times, other pixels
    capsys.readouterr()
    first = convert("my_images")
    os.remove(next(Path("my_images/train/a").iterdir()))
    assert convert("my_images")["train"] != first["train"]
    assert "13 images" in capsys.readouterr().out


def test_a_folder_without_labelled_tests_gets_a_test_split_for_fine_tuning(folder, capsys):
    """A fifth of each class, the same each time and in any place; or the validation split, where there is one."""

    def files(beton):
        return {Path(line).name for line in beton.with_suffix(".txt").read_text().splitlines()}

    Path("my_images/test").rename("my_images/train/c")
    whole, betons = convert("my_images"), convert("my_images", test_share=0.2)
    assert set(whole) == {"train"}
    assert set(betons) == {"train", "test"}
    assert files(betons["train"]) | files(betons["test"]) == files(whole["train"])
    assert not files(betons["train"]) & files(betons["test"])
    assert np.bincount(open_beton(betons["test"]).label).tolist() == [1, 1, 1]
    assert "3 of the 20 training images, 20 % of each class by a hash" in capsys.readouterr().err
    assert convert("my_images", test_share=0.2) == betons
    assert "3 of the 20 training images" in capsys.readouterr().out
    shutil.copytree("my_images", "elsewhere")
    assert files(convert("elsewhere", test_share=0.2)["test"]) == files(betons["test"])
    shutil.copytree("my_images/train/c/a", "my_images/test")  # flat: without labels
    assert set(convert("my_images")) == {"train"}  # nothing would read the others
    again = convert("my_images", test_share=0.2)
    assert set(again) == {"train", "test"}
    assert files(again["test"]) == files(betons["test"])
    shutil.copytree("my_images/train/b", "my_images/val/b")
    by_val = convert("my_images", test_share=0.2)
    assert set(by_val) == {"train", "test"}
    assert files(by_val["test"]) == {path.name for path in Path("my_images/val/b").iterdir()}
    shutil.rmtree("my_images/train")
    with pytest.raises(DatasetError, match="no training images, only those of: val, test"):
        convert("my_images")


def test_a_beton_that_was_damaged_since_is_converted_again(folder):
    betons = convert("my_images")
    whole = betons["train"].read_bytes()
    betons["train"].write_bytes(whole[: len(whole) // 2])
    assert convert("my_images") == betons
    assert betons["train"].read_bytes() == whole


def test_names_with_line_breaks_end_in_zero_bytes(folder):
    odd = Path("my_images/train/a/line\nbreak.jpg")
    shutil.copy(next(Path("my_images/train/a").iterdir()), odd)
    listed = convert("my_images")["train"].with_suffix(".txt").read_text()
    assert str(odd) in listed.split("\0")
    assert len(listed.split("\0")) == 15 + 1
    assert "\0" not in convert("my_images")["test"].with_suffix(".txt").read_text()


@pytest.fixture
def trained(monkeypatch):
    """The configurations that pretraining and fine-tuning were called with; nothing is trained."""
    seen = []
    monkeypatch.setattr("idmm_fast.train.pretraining.pretrain", lambda cfg, evaluation: seen.append(cfg))
    monkeypatch.setattr("idmm_fast.train.finetuning.finetune", seen.append)
    return seen


def test_any_key_can_be_given(folder, trained):
    """The section `data` under another name, since `data` is the images."""
    keys = {"num_workers": 1, "on_error": "replace"}
    idmm_fast.pretrain("my_images", "run", model=TINY, data_options=keys, training={"batch_size": 5})
    cfg = trained[-1]
    assert (cfg.data.num_workers, cfg.data.on_error, cfg.training.batch_size) == (1, "replace", 5)
    idmm_fast.finetune("my_images", "tuned", model=TINY, data_options={"per_class": 2})
    assert trained[-1].data.per_class == 2
    with pytest.raises(ConfigError, match=r"data\.num_worker.*data\.num_workers"):
        idmm_fast.finetune("my_images", "tuned", data_options={"num_worker": 2})


def test_a_pretraining_has_the_model_of_the_argument_then_of_the_configuration(folder, trained):
    """The argument's default once went before the configuration."""

    def model(**options):
        idmm_fast.pretrain("my_images", "run", **options)
        return trained[-1].model

    assert model().name == model(config="own").name == "deit_tiny_patch16_224"
    assert model(config="backbones/t2t_vit_7").name == "t2t_vit_7"
    assert model(config="backbones/t2t_vit_7", model="pvt_v2_b0").name == "pvt_v2_b0"
    smaller = model(config="backbones/t2t_vit_7", model={"image_size": 64})
    assert (smaller.name, smaller.image_size) == ("t2t_vit_7", 64)
    Path("run_1").mkdir()
    assert model(init="run_1").init == model(model={"init": "run_1"}).init == "run_1"
    assert model().init is None


def test_a_fine_tuning_has_the_model_of_the_argument_then_of_init_then_of_the_configuration(folder, trained):
    Path("other").mkdir()
    theirs = "model: {name: vit_tiny_patch16_224, image_size: 32, options: {depth: 2}}\nlogging: {run_dir: other}\n"
    Path("other/config.yaml").write_text(theirs)

    def model(**options):
        idmm_fast.finetune("my_images", "run", **options)
        return trained[-1].model

    Path("unknown.safetensors").touch()
    assert model().name == model(config="own").name == "deit_tiny_patch16_224"
    assert model(config="backbones/t2t_vit_7").name == "t2t_vit_7"
    assert model(config="backbones/t2t_vit_7", init="unknown.safetensors").name == "t2t_vit_7"
    assert model(init="unknown.safetensors").name == "deit_tiny_patch16_224"
    theirs = model(config="own", init="other")
    assert (theirs.name, theirs.options, theirs.image_size) == ("vit_tiny_patch16_224", {"depth": 2}, 224)
    assert model(config="own", init="timm:deit_small_patch16_224.fb_in1k").name == "deit_small_patch16_224"
    named = model(config="own", init="other", model="pvt_v2_b0")
    assert (named.name, named.options) == ("pvt_v2_b0", {})
    assert model(init="other", model={"options": {"depth": 3}}).options == {"depth": 3}


def test_a_table_of_features_is_read_back_whatever_the_files_are_called(tmp_path):
    names = ['a,b "c".jpg', "new\nline.jpg", "re\rturn.jpg", os.fsdecode(b"caf\xe9.jpg"), "1"]
    features = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    _write_features(tmp_path / "f.csv", features, np.arange(-1, 4), names)
    with open(tmp_path / "f.csv", encoding="utf-8", errors="surrogateescape", newline="") as file:
        rows = list(csv.reader(file))
    assert [row[:2] for row in rows] == [[name, str(label)] for label, name in enumerate(names, -1)]
    assert np.allclose([[float(x) for x in row[2:]] for row in rows], features, rtol=1e-6)


@pytest.mark.integration
def test_images_without_classes_will_do(folder):
    for k, photo in enumerate(photographs(6)):
        Path("flat").mkdir(exist_ok=True)
        Image.fromarray(photo).save(f"flat/{k}.png")
    run = idmm_fast.pretrain("flat", "run", TINY, epochs=1, training={"compile": False})
    assert (run / "backbone.safetensors").exists()
    assert idmm_fast.pretrain("flat", "run", TINY, epochs=1, training={"compile": False}) == run  # done already
    Path("flat/deep").mkdir()
    shutil.copy("flat/0.png", "flat/deep/0.png")
    with pytest.raises(DatasetError, match="6 images beside its folders"):
        convert("flat")


@pytest.mark.integration
def test_names_with_line_ends_do_not_shift_the_list(folder):
    """Nor do names that are not UTF-8: every vector stands beside its own file."""
    odd = ["first\nline.jpg", "\n.jpg", os.fsdecode(b"caf\xe9.jpg"), "plain.jpg"]
    Path("odd/a").mkdir(parents=True)
    for name, file in zip(odd, sorted(Path("my_images").rglob("*.jpg"))):
        (Path("odd/a") / name).write_bytes(file.read_bytes())
    run = idmm_fast.pretrain("odd", "run", TINY, epochs=1, training={"compile": False})
    features, files = idmm_fast.embed("odd", run)
    assert {Path(file).name for file in files} == set(odd)
    for vector, file in zip(features, files):
        (folder / "one" / "x").mkdir(parents=True, exist_ok=True)
        (folder / "one" / "x" / "y.jpg").write_bytes(Path(file).read_bytes())
        assert np.allclose(idmm_fast.embed("one", run)[0][0], vector, atol=1e-4)


@pytest.mark.integration
@pytest.mark.usefixtures("without_pictures", "compiled_kernels")
def test_a_fine_tuning_from_other_weights_under_the_same_name_begins_anew(folder, capsys):
    """The result of the old ones had been given again."""
    options = {"model": TINY, "epochs": 1, "training": {"compile": False}}

    def tune():
        return idmm_fast.finetune("my_images", "tuned", init="run", **options)

    idmm_fast.pretrain("my_images", "run", **options)
    result = tune()
    idmm_fast.pretrain("my_images", "run", **options)  # it has ended: its weights stay
    assert tune() == result
    assert not Path("tuned_before_1").exists()
    shutil.rmtree("run")
    idmm_fast.pretrain("my_images", "run", **options | {"training": {"compile": False, "seed": 1}})
    tune()
    assert Path("tuned_before_1/model.safetensors").is_file()
    assert "started with other images, labels or weights: it is now tuned_before_1" in capsys.readouterr().out
    old, new = (Path(run, "model.safetensors").read_bytes() for run in ("tuned_before_1", "tuned"))
    assert old != new


def test_a_validation_split_that_was_added_begins_a_new_run(folder, capsys):
    options = {"model": TINY, "epochs": 1, "training": {"compile": False}}
    idmm_fast.finetune("my_images", "tuned", **options)
    shutil.copytree("my_images/test", "my_images/val")
    assert "val_top1" in idmm_fast.finetune("my_images", "tuned", **options)
    assert Path("tuned_before_1/model.safetensors").is_file()
    assert "it is now tuned_before_1" in capsys.readouterr().out


@pytest.fixture
def run(folder):
    """The run folder of a pretraining on the CPU in bf16: random weights."""
    (folder / "run").mkdir()
    torch.manual_seed(0)
    save_backbone(create_backbone(TINY["name"], 32, options=TINY["options"]), folder / "run" / "backbone.safetensors")
    write_run_config(folder / "run", "bf16")
    return folder / "run"


def write_run_config(run, amp, device="cpu"):
    training = {"amp": amp, "device": device, "channels_last": False}
    sections = {"model": TINY, "training": training, "logging": {"run_dir": str(run)}}
    (run / "config.yaml").write_text(json.dumps(sections))


@pytest.mark.usefixtures("compiled_kernels")
def test_features_have_the_precision_that_the_run_says(run):
    """That of its evaluation; embed had taken what is fastest here."""
    backbone = create_backbone(TINY["name"], 32, options=TINY["options"]).eval()
    load_backbone(backbone, run)
    found, wanted = {}, {}
    for amp in ("bf16", "fp32"):
        write_run_config(run, amp)
        found[amp], files = idmm_fast.embed("my_images", run)
        pixels = next(iter(ImageFiles([Path(file) for file in files], 32, 256, 1)))[0]
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=amp == "bf16"):
            wanted[amp] = backbone(Normalize(pretraining=True)(pixels)).float().numpy()
    assert np.abs(wanted["bf16"] - wanted["fp32"]).max() > 1e-3
    for amp in found:
        assert np.allclose(found[amp], wanted[amp], atol=1e-5)


@pytest.mark.parametrize("amp", ["fp16", "fp32"])
def test_what_a_run_is_evaluated_on_is_its_own_as_far_as_this_machine_can(run, amp):
    write_run_config(run, amp, "cuda")
    trained = load_trained(run)
    assert trained.runtime().device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    on_cpu = trained.runtime("cpu")
    assert on_cpu.device.type == "cpu"
    assert on_cpu.amp != torch.float16
    if amp == "fp32":
        assert on_cpu.amp is None


def test_a_size_of_no_pixels_is_not_the_runs(run):
    for size in (0, -5):
        with pytest.raises(ConfigError, match=f"image_size is at least 1, not {size}"):
            idmm_fast.embed("my_images", run, image_size=size)


def test_what_can_not_be_written_is_told_before_the_work(run, monkeypatch):
    pytest.importorskip("onnxscript")
    for name in ("f.csv", "f.onnx"):
        Path(name).mkdir()
    for place in ("idmm_fast.models", "idmm_fast.evaluate.predict"):
        monkeypatch.setattr(f"{place}.load_trained", lambda *args, **options: pytest.fail("it was begun"))
    for work in (
        lambda out: idmm_fast.embed("my_images", run, f"{out}.csv"),
        lambda out: idmm_fast.predict("my_images", run, f"{out}.csv"),
        lambda out: idmm_fast.export(run, f"{out}.onnx"),
    ):
        with pytest.raises(OSError, match=r"^f\.\w+ is a folder; name a file$"):
            work("f")
        with pytest.raises(OSError, match=r"^run/config\.yaml/f\.\w+ can't be written: run/config\.yaml is no folder$"):
            work("run/config.yaml/f")


def test_mistakes_are_told_before_a_folder_is_converted(folder):
    mistakes = {
        r"training\.lr: 'abc' is not a number": {"training": {"lr": "abc"}},
        r"training\.epochs: 0 is not": {"epochs": 0},
        r"no key 'training\.epoch'": {"training": {"epoch": 3}},
        r"model\.init: nowhere does not exist": {"init": "nowhere"},
    }
    for train in (idmm_fast.pretrain, idmm_fast.finetune):
        for said, given in mistakes.items():
            with pytest.raises(ConfigError, match=said):
                train("my_images", "run", **given)
    with pytest.raises(ConfigError, match=r"data\.test: gone\.beton does not exist"):
        idmm_fast.finetune("my_images", "run", test="gone.beton")
    with pytest.raises(ConfigError, match=r"model\.init_head needs model\.init"):
        idmm_fast.finetune("my_images", "run", model={"init_head": True})
    assert not (folder / "cache").exists()


def test_mistakes_are_sentences(folder):
    with pytest.raises(ConfigError, match=r"training\.batchsize"):
        idmm_fast.pretrain("my_images", "run", training={"batchsize": 3})
    with pytest.raises(ConfigError, match=r"no argument 'minutes'\. Did you mean 'training\.minutes'\? .* training={"):
        idmm_fast.pretrain("my_images", "run", minutes=1)
    with pytest.raises(ConfigError, match=r"training is a dict of keys, .* not 3"):
        idmm_fast.finetune("my_images", "run", training=3)
    with pytest.raises(ConfigError, match=r"model\.init: .*nowhere does not exist"):
        idmm_fast.finetune("my_images", "run", init=folder / "nowhere")
    with pytest.raises(ConfigError, match=r"data\.test: my_images is a folder, and this takes a \.beton file"):
        idmm_fast.finetune("my_images", "run", test="my_images")
    with pytest.raises(ConfigError, match=r"\.npz or \.csv"):
        idmm_fast.embed("my_images", "run", "f.txt")
    with pytest.raises(ConfigError, match="no run folder"):
        idmm_fast.embed("my_images", "nowhere")
    with pytest.raises(DatasetError, match="is not a folder"):
        idmm_fast.pretrain("nowhere", "run")


@pytest.mark.integration
@pytest.mark.parametrize(
    "name",
    [
        "vit_tiny_patch16_224",
        *(pytest.param(n, marks=pytest.mark.slow) for n in ("pvt_v2_b0", "t2t_vit_7", "t2t_vit_t_14")),
    ],
)
def test_exported_networks_give_the_same_elsewhere(folder, name):
    """In onnxruntime, for another number of images than was traced: the features, and the classifier's logits."""
    onnxruntime = pytest.importorskip("onnxruntime")
    model = TINY if name.startswith("vit") else {"name": name, "image_size": 32}
    run = idmm_fast.pretrain("my_images", "run", model, epochs=1, training={"batch_size": 7, "compile": False})
    idmm_fast.finetune(
        "my_images", "tuned", run, epochs=1, model={"image_size": 32}, training={"batch_size": 7, "compile": False}
    )
    images = torch.randint(0, 256, (5, 3, 32, 32), dtype=torch.uint8)
    backbone = create_backbone(model["name"], 32, options=model.get("options"))
    load_backbone(backbone, run)
    classifier = Classifier(backbone, init_head(feature_dim(backbone), 2))
    with torch.no_grad():
        wanted = {"run": backbone.eval()(Normalize(pretraining=True)(images))}
        classifier.load_state_dict(checkpoint.newest("tuned/checkpoints")[1]["model"])
        wanted["tuned"] = classifier.eval()(images)
    for which in ("run", "tuned"):
        made = onnxruntime.InferenceSession(
            str(idmm_fast.export(which, f"{which}.onnx")), providers=["CPUExecutionProvider"]
        )
        (found,) = made.run(None, {"images": images.numpy()})
        assert made.get_outputs()[0].name == {"run": "features", "tuned": "logits"}[which]
        metadata = made.get_modelmeta().custom_metadata_map
        assert metadata.get("label_names") == {"run": None, "tuned": '["a", "b"]'}[which]
        assert np.allclose(found, wanted[which], atol=1e-4)
    if name.startswith("vit"):  # as the page on predictions reads it
        space = {}
        (folder / "classifier.onnx").write_bytes((folder / "tuned.onnx").read_bytes())
        Image.open("new_images/new.png").save("new.jpg")
        *_, block = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "predict.md").read_text(), re.S)
        exec(block, space)
        assert space["label"] in ("a", "b")
