#!/usr/bin/env python
"""Show that a change of names and files left all numbers alone: record digests on one commit, compare on another.

    git worktree add --detach /tmp/before COMMIT
    (cd /tmp/before && PYTHONPATH=$PWD python ~/idmm_fast/scripts/digests.py record /tmp/digests.json)
    python scripts/digests.py compare /tmp/digests.json                   # prints `same` or `differs` for each digest
    python scripts/digests.py compare /tmp/digests.json --only finetune/  # those whose names begin so; also `record`

`compare` exits with 1 if a digest differs. The package and the scripts are those of the working directory. A digest is
a SHA-256, so numbers agree to the last bit or not at all: record and compare on one machine, with the same versions of
all packages. Each takes three minutes on one core, and the first one in a tree compiles the kernels too. All images are
windows of scikit-learn's two photographs; nothing is downloaded. `record`, then `compare` on the same commit, shows
that no digest changes by itself.

What is covered:

convert/   Betons, sidecars and lists of chosen images that write_datasets.py writes. Images: JPEG (plain, 4:4:4, grey,
           CMYK, progressive, turned by EXIF), PNG (RGB, RGBA, grey, 16 bit, palette), BMP, GIF, TIFF, WebP, damaged
           files. Modes jpg, raw and auto; each option; the datasets folder, webdataset and hf. write_beton from memory,
           with an image larger than a page; write_subset; what the Python functions convert a folder to.
batches/   MultiCropLoader: pixels, idx_a, idx_b, lam, memory format; from JPEG and raw betons. Crops of several sizes,
           CutMix, each augmentation, RandAugment, bicubic, ratio; epochs, seeds, resume in mid-epoch, rows, order,
           partial batch, threads, parts of several processes, damaged rows. evaluation_loader. The loader that renders
           on a GPU, here on the CPU.
losses/    instance_loss and fused_instance_loss in float32, float64 and bfloat16, with all gradients.
pretrain/  The curve (metrics.jsonl), backbone.safetensors, all tensors of the last checkpoint. IDMM's heads and
           options, each method with its file of rn_configs/methods, four families of backbones, online evaluation, dry
           run, a loss that is NaN.
finetune/  The same, and config.json, result.json, best.pt. Mixup, CutMix, RandAugment, per_class, --init, init_head,
           --stages.
resume/    Runs that are stopped, by a signal or as if killed, and resumed: the digests are those of the whole run.
two/       Two processes (gloo), of torchrun or forked: IDMM dense, sharded and sampled, each method, fine-tuning; one
           process that resumes what two began.
evaluate/  What evaluate.py prints (kNN, linear probe) of a run and of random weights.
api/       pretrain, finetune and embed (.npz and .csv) from Python.
recipes/   What the files in rn_configs resolve to, key by key; all defaults.

What is left out of a digest, since it differs from run to run or is words: a sidecar's time, versions and account, and
its reasons for skipping an image; images_per_s and the share of waiting in metrics.jsonl; the names and the order of a
checkpoint's tensors; in recipes/, logging.run_dir, data.cache and keys of BEFORE_THE_KEY (train/run_dir.py) that change
nothing.
What is not covered: pictures, compare.py, benchmark.py, demo.py, analyze.py, export to ONNX, the readers of downloaded
datasets (the tests have small trees for them), CUDA, torch.compile.

The file is long because most of it is tables of cases, which are read best in one place: they are the list of what is
covered.
"""

import argparse
import contextlib
import dataclasses
import gc
import hashlib
import importlib
import importlib.util
import io
import itertools
import json
import os
import pkgutil
import platform
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
import traceback
import warnings
from importlib.metadata import version
from pathlib import Path

ROOT = Path.cwd()
sys.path.insert(0, str(ROOT))
os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
os.environ |= dict.fromkeys(("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TQDM_DISABLE"), "1")
os.environ |= {"PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}

import numpy as np  # noqa: E402  the number of threads is set above
import torch  # noqa: E402
import yaml  # noqa: E402
from PIL import Image  # noqa: E402
from sklearn.datasets import load_sample_images  # noqa: E402
from tqdm import tqdm  # noqa: E402

# The keys of the configuration, before and now; those of `augment` are the fields of the loader's Augment too.
RENAMED = dict(
    line.split()
    for line in """
    training.smoothing      training.label_smoothing
    training.head_lr        training.head_lr_scale
    training.decay_vectors  training.decay_norm_bias
    training.clip           training.clip_grad
    training.max_skipped    training.max_nonfinite_steps
    model.keep_head         model.init_head
    views.groups            crops.groups
    views.scale             crops.scale
    augment.flip            augment.flip_prob
    augment.jitter          augment.jitter_prob
    augment.blur            augment.blur_prob
    augment.gray            augment.grayscale_prob
    augment.sigma           augment.blur_sigma
    augment.operations      augment.randaugment
    cutmix.chunk            cutmix.chunk_size
    cutmix.per_row          cutmix.per_sample
    mixing.alpha            mixup_cutmix.alpha
    head.dense_mb           head.max_dense_mb
    head.scratch_mb         head.workspace_mb
    data.views_on           data.augment_on
    probe.every             online_eval.every
    probe.linear            online_eval.linear
    linear.probe            linear.enabled
    linear.strength         linear.C
    ladder.stages           progressive.stages
    """.strip().splitlines()
)
BEFORE = {now: before for before, now in RENAMED.items()}

JOBS = {}  # name: (function, the jobs whose files it reads)


def job(name, *args, needs=()):
    """Decorator: the function, called with `args`, returns {part: value}, whose digests are called "NAME PART"."""

    def enter(function):
        JOBS[name] = (lambda: function(*args), needs)
        return function

    return enter


def find(*names):
    """The first of these objects ("module:object") that there is: the one of now, or those of before."""
    for name in names:
        module, _, thing = name.partition(":")
        with contextlib.suppress(ModuleNotFoundError, AttributeError):
            return getattr(importlib.import_module(f"idmm_fast.{module}" if module else "idmm_fast"), thing)
    raise SystemExit(f"error: {ROOT} has none of {', '.join(names)}; tell scripts/digests.py the new name")


# ---- digests -------------------------------------------------------------------------------------------------------


def feed(digest, value):
    """Add `value` (dicts, lists, arrays, tensors, files, plain values) to a hashlib object."""
    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().contiguous()
        value = value.view(torch.uint16).numpy() if value.dtype == torch.bfloat16 else value.numpy()
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, dict):
        value = [[str(key), value[key]] for key in sorted(value, key=str)]
    if isinstance(value, np.ndarray):
        digest.update(f"array {value.dtype} {value.shape}".encode() + np.ascontiguousarray(value).tobytes())
    elif isinstance(value, list | tuple):
        digest.update(f"list {len(value)}".encode())
        for entry in value:
            feed(digest, entry)
    elif isinstance(value, Path):
        digest.update(b"file" + value.read_bytes())
    elif isinstance(value, bytes):
        digest.update(b"bytes" + value)
    elif value is None or isinstance(value, str | int | float | bool):
        digest.update(f"{type(value).__name__} {value!r};".encode())
    else:
        raise TypeError(f"no digest of {type(value)}")


def sha256(value):
    digest = hashlib.sha256()
    feed(digest, value)
    return digest.hexdigest()


def in_a_child(name, function):
    """{"NAME PART": digest} of a job, or {"NAME error": traceback}. It runs in a forked process, on its own."""
    sys.stdout.flush()
    with tempfile.TemporaryFile() as answer, open(f"{name.replace('/', '_')}.log", "w") as log:
        child = os.fork()
        if child == 0:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
            try:
                found = {f"{name} {part}": sha256(value) for part, value in function().items()}
            except BaseException:
                found = {f"{name} error": traceback.format_exc()}
            answer.write(json.dumps(found).encode())
            answer.flush()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(0)
        os.waitpid(child, 0)
        answer.seek(0)
        return json.loads(answer.read() or json.dumps({f"{name} error": f"the process ended; see {log.name}"}))


# ---- images --------------------------------------------------------------------------------------------------------


def photographs(count, seed=0, low=90, high=260):
    """`count` different windows of scikit-learn's two photographs, uint8 (H, W, 3), of random size and shape."""
    sources = load_sample_images().images
    rng = np.random.default_rng(seed)
    result = []
    for k in range(count):
        source = sources[k % len(sources)]
        h, w = rng.integers(low, high, 2)
        top, left = rng.integers(0, source.shape[0] - h), rng.integers(0, source.shape[1] - w)
        result.append(np.ascontiguousarray(source[top : top + h, left : left + w]))
    return result


def write_tree():
    """tree/{train,test}/CLASS/*: many formats, two damaged files. flat/*.jpg: no classes. shards/*.tar: WebDataset."""
    forms = yaml.safe_load("""
        plain.jpg: [null, {quality: 90}]
        full.jpg: [null, {quality: 95, subsampling: 0}]
        grey.jpg: [L, {}]
        cmyk.jpg: [CMYK, {}]
        progressive.jpg: [null, {progressive: true}]
        turned.jpg: [null, {}]
        rgb.png: [null, {}]
        alpha.png: [RGBA, {}]
        grey.png: [L, {}]
        deep.png: [16 bit, {}]
        palette.png: [P, {transparency: 3}]
        plain.bmp: [null, {}]
        plain.gif: [P, {}]
        plain.tiff: [null, {}]
        plain.webp: [null, {lossless: true}]
        """)
    turned = Image.Exif()
    turned[0x0112] = 6  # the orientation
    forms["turned.jpg"][1]["exif"] = turned
    for k, photo in enumerate(photographs(4 * len(forms))):
        split, label = ("train", "test")[k // len(forms) == 3], f"class{k % 3}"
        name, (mode, options) = list(forms.items())[k % len(forms)]
        image = Image.fromarray(photo)
        if mode == "16 bit":
            image = Image.fromarray(photo[..., 0].astype(np.uint16) * 251)
        elif mode == "RGBA":
            image.putalpha(Image.fromarray(photo[..., 1]))
        elif mode:
            image = image.convert(mode)
        folder = Path("tree") / split / label
        folder.mkdir(parents=True, exist_ok=True)
        image.save(folder / f"{k:02d}_{name}", **options)
    Path("tree/train/class1/short.jpg").write_bytes(Path("tree/train/class0/00_plain.jpg").read_bytes()[:2000])
    Path("tree/train/class2/text.png").write_text("no image")
    Path("flat").mkdir()
    Path("shards").mkdir()
    for s in range(2):
        with tarfile.open(f"shards/{s:03d}.tar", "w") as file:
            for k, photo in enumerate(photographs(6, seed=10 + s)):
                jpeg = io.BytesIO()
                Image.fromarray(photo).save(jpeg, "JPEG", quality=85)
                Path(f"flat/{s}{k}.jpg").write_bytes(jpeg.getvalue())
                for end, data in (("jpg", jpeg.getvalue()), ("cls", str(k % 3).encode())):
                    member = tarfile.TarInfo(f"{s}{k}.{end}")
                    member.size = len(data)
                    file.addfile(member, io.BytesIO(data))


def write_betons():
    """The betons of the loader's and the trainings' jobs, all of four classes.

    jpg.beton, raw.beton: 40 photographs. damaged.beton: the same JPEGs, three of them altered. tiny_train.beton,
    tiny_test.beton: 64 and 32 images of 32 x 32 pixels, each class of another colour.
    """
    from idmm_fast.beton import open_beton, write_beton
    from idmm_fast.datasets import Split

    def write(name, images, mode):
        split = Split(images, [k % 4 for k in range(len(images))], ["red", "green", "blue", "yellow"])
        write_beton(Path(f"{name}.beton"), split, dataset="test", name=name, mode=mode, quiet=True)

    write("jpg", photographs(40), "jpg")
    write("raw", photographs(40), "raw")
    shutil.copy("jpg.beton", "damaged.beton")
    beton = open_beton("jpg.beton")
    with open("damaged.beton", "r+b") as file:
        for row in (3, 17, 18):
            file.seek(int(beton.ptr[row]) + int(beton.length[row]) // 2)
            file.write(b"\xff\xd9\xff\xd9")
    tints = np.array([[1.0, 0.4, 0.4], [0.4, 1.0, 0.4], [0.4, 0.4, 1.0], [1.0, 1.0, 0.3]])
    for name, count, seed in (("tiny_train", 64, 2), ("tiny_test", 32, 3)):
        small = [np.asarray(Image.fromarray(photo).resize((32, 32))) for photo in photographs(count, seed)]
        write(name, [(image * tints[k % 4]).astype(np.uint8) for k, image in enumerate(small)], "raw")


# ---- scripts -------------------------------------------------------------------------------------------------------


def main_of(script):
    """The function main(argv) of a script of the top level."""
    spec = importlib.util.spec_from_file_location(script.removesuffix(".py"), ROOT / script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def call(script, *args, code=0):
    """What a script of the top level writes to stdout. Raises RuntimeError if its exit code is not `code`."""
    out, err, found = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main_of(script)([str(a) for a in args])
        except SystemExit as end:
            found = end.code or 0
            if isinstance(found, str):
                found, _ = 1, print(found, file=err)
    if found != code:
        raise RuntimeError(f"{script} {' '.join(map(str, args))} exited with {found}: {err.getvalue()[-3000:]}")
    return out.getvalue()


KEYS = {}  # script: its keys


def key_of(script, key):
    """`key` as this tree calls it."""
    if script not in KEYS:
        KEYS[script] = set(re.findall(r"--([a-z_]+\.\w+)", call(script, "--help")))
    return key if key in KEYS[script] else BEFORE.get(key, key)


def arguments(script, values):
    """--section.key=value of {key as it is called now: value}."""
    values = {key_of(script, key): value for key, value in values.items()}
    return [f"--{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()]


# ---- converted files -----------------------------------------------------------------------------------------------


def converted(folder):
    """{file: content} of a folder of betons; of a sidecar what does not change from day to day."""
    found = {}
    for path in sorted(Path(folder).glob("*")):
        if path.suffix == ".json":
            content = json.loads(path.read_text())
            found[path.name] = {k: v for k, v in content.items() if k not in ("written", "versions", "account")}
            found[path.name]["skipped"] = [skip["file"] for skip in content["skipped"]]
        elif path.suffix in (".beton", ".txt"):
            found[path.name] = path
    return found


def convert(name, *args, code=0):
    """What write_datasets.py makes with these arguments."""
    call("write_datasets.py", "--out", f"out_{name}", *args, code=code)
    return converted(f"out_{name}")


TREE = "--ds folder --root tree --name tree"
CONVERSIONS = f"""
jpg                     {TREE} --mode jpg
raw                     {TREE} --mode raw
auto                    {TREE} --mode auto
jpg_max_resolution      {TREE} --mode jpg --max-resolution 120
raw_max_resolution      {TREE} --mode raw --max-resolution 120
max_resolution_8        {TREE} --mode jpg --max-resolution 8
quality_and_seed        {TREE} --mode jpg --quality 60 --seed 3 --workers 1
subset                  {TREE} --mode raw --subset 9
per_class               {TREE} --mode jpg --per-class 3 --seed 1
total                   {TREE} --mode jpg --total 7
flat                    --ds folder --root flat --name flat
webdataset              --ds webdataset --shards shards/{{000..001}}.tar --name shards
"""
for _line in CONVERSIONS.strip().splitlines():
    _name, *_args = _line.split()
    job(f"convert/{_name}", _name, *_args)(convert)


@job("convert/on_error_fail")
def convert_on_error_fail():
    return {"files": list(convert("fail", *TREE.split(), "--on-error", "fail", code=1))}


@job("convert/hf")
def convert_hf():
    import datasets

    datasets.disable_progress_bars()
    files = sorted(map(str, Path("flat").glob("*.jpg")))
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    table = datasets.Dataset.from_dict({"image": files, "label": [k % 2 for k in range(len(files))]}, features=features)
    with contextlib.redirect_stderr(io.StringIO()):
        datasets.DatasetDict({"train": table, "validation": table.select(range(4))}).save_to_disk("table")
    return convert("hf", "--ds", "hf", "--name", "table", "--mode", "jpg")


@job("convert/from_memory")
def convert_from_memory():
    """Pixels, grey ones, and encoded bytes, in one split; one image is larger than a page."""
    from idmm_fast.beton import write_beton
    from idmm_fast.datasets import Split

    photos = photographs(4)
    images = [*photos, photos[0][..., 0], Path("flat/00.jpg").read_bytes(), np.tile(photos[0], (18, 14, 1))]
    split = Split(images, list(range(7)), list("abcdefg"))
    for mode in ("jpg", "raw"):
        write_beton(Path(f"memory/{mode}.beton"), split, dataset="d", name="n", mode=mode, quiet=True)
    return converted("memory")


@job("convert/subset_of_a_beton")
def convert_subset():
    from idmm_fast.beton import open_beton

    write_subset, sample = find("beton.subset:write_subset"), find("beton.subset:sample_rows", "beton.subset:draw_rows")
    Path("part").mkdir()
    for mode, balanced in itertools.product(("jpg", "raw"), (False, True)):
        beton = open_beton(f"{mode}.beton")
        write_subset(beton.path, sample(beton.label, 13, balanced, 5), Path(f"part/{mode}_{balanced}.beton"))
    return converted("part")


@job("convert/api")
def convert_api():
    made = find("api:convert")("tree")
    folder = made["train"].parent
    return converted(folder) | {"names": {split: path.name for split, path in made.items()}}


# ---- batches -------------------------------------------------------------------------------------------------------


def augment(**values):
    """The loader's Augment, its fields as they are called now; all others as they come."""
    from idmm_fast.loader import Augment

    fields = {f.name for f in dataclasses.fields(Augment)}
    return Augment(**{k if k in fields else BEFORE[f"augment.{k}"].partition(".")[2]: v for k, v in values.items()})


def contents(batches):
    """What a list of batches holds."""

    def of_group(g):
        return [g.images, g.images.is_contiguous(memory_format=torch.channels_last), g.idx_a, g.idx_b, g.lam]

    return [[of_group(group) for group in batch] for batch in batches]


def views(groups, **options):
    from idmm_fast.loader import Views

    return [Views(*group, **options) for group in groups]


SIZES = ((2, 64, (0.14, 1.0)), (3, 48, (0.05, 0.4)), (1, 33, (0.5, 1.0)))
OFF = {"flip_prob": 0, "jitter_prob": 0, "grayscale_prob": 0, "blur_prob": 0}
# Arguments of MultiCropLoader; `augment`: of Augment, `views`: of Views beside SIZES, or a list of groups.
LOADERS = yaml.safe_load("""
    cutmix: {}
    no_cutmix: {cutmix_alpha: 0}
    cutmix_alpha_1: {cutmix_alpha: 1.0}
    cutmix_chunk: {cutmix_chunk: 4}
    cutmix_per_row: {cutmix_per_row: true}
    cutmix_chunk_per_row: {cutmix_chunk: 2, cutmix_per_row: true}
    bicubic: {views: {interpolation: bicubic}}
    ratio: {views: {ratio: [0.3, 3.0]}}
    no_augment: {augment: {flip_prob: 0, jitter_prob: 0, grayscale_prob: 0, blur_prob: 0}}
    flip: {augment: {flip_prob: 1, jitter_prob: 0, grayscale_prob: 0, blur_prob: 0}}
    jitter: {augment: {flip_prob: 0, jitter_prob: 1, grayscale_prob: 0, blur_prob: 0}}
    grayscale: {augment: {flip_prob: 0, jitter_prob: 0, grayscale_prob: 1, blur_prob: 0}}
    blur: {augment: {flip_prob: 0, jitter_prob: 0, grayscale_prob: 0, blur_prob: 1}}
    strengths: {augment: {brightness: 0.4, contrast: 0.4, saturation: 0.2, hue: 0.1, blur_sigma: [0.5, 4.0]}}
    randaugment_1: {augment: {randaugment: 1, blur_prob: 0}, cutmix_alpha: 0, views: [[1, 64]]}
    randaugment_2: {augment: {randaugment: 2}, views: [[8, 64]]}
    another_seed: {seed: 18446744073709551615}
    in_order: {shuffle: false}
    drop_last: {drop_last: true}
    rows: {rows: [5, 1, 1, 39, 7, 22, 8]}
    """)


@job("batches/jpg", "jpg")
@job("batches/raw", "raw")
def batches(mode):
    """Two epochs of each of LOADERS."""
    from idmm_fast.loader import MultiCropLoader

    found = {}
    for name, options in LOADERS.items():
        crops = options.pop("views", {})
        options |= {"views": views(crops) if isinstance(crops, list) else views(SIZES, **crops)}
        options |= {"augment": augment(**options.pop("augment", {}))}
        with contextlib.closing(MultiCropLoader(f"{mode}.beton", 12, 1, **{"seed": 5} | options)) as loader:
            found[name] = [len(loader), contents(loader), contents(loader)]
    with contextlib.closing(MultiCropLoader(f"{mode}.beton", 12)) as loader:
        found["defaults"] = contents(loader)
    return found


@job("batches/places")
def batches_places():
    """Threads, epochs, resume in mid-epoch, cutmix_alpha set later, parts of several processes."""
    from idmm_fast.loader import MultiCropLoader

    def loader(mode="jpg", batch_size=8, workers=1, **options):
        return MultiCropLoader(f"{mode}.beton", batch_size, workers, seed=2, **{"views": views(SIZES[:2])} | options)

    found = {"two_threads": contents(loader(workers=2, batches_ahead=4))}
    one = loader()
    one.set_epoch(7)
    found["epoch_7"] = contents(one)
    iterator = iter(one)
    next(iterator), next(iterator)
    state = one.state_dict()
    other = loader()
    other.load_state_dict(state)
    found["resumed"] = [state, contents(other), contents(other)[0]]
    one.cutmix_alpha = 0
    found["alpha_set_later"] = contents(one)
    for world, rank in ((2, 0), (2, 1), (3, 0), (3, 1), (3, 2)):
        part = loader("raw", 6, rank=rank, world_size=world, cutmix_chunk=2)
        found[f"process_{rank}_of_{world}"] = [len(part), contents(part)]
    return found


@job("batches/damaged")
def batches_damaged():
    from idmm_fast.loader import MultiCropLoader

    warnings.simplefilter("ignore")
    replace = MultiCropLoader("damaged.beton", 16, 1, views=views(SIZES[:2]), on_error="replace")
    skip = MultiCropLoader("damaged.beton", 16, 1, views=views([(1, 48)]), on_error="skip", cutmix_alpha=0)
    first, second = contents(replace), contents(skip)
    instead = {row: other for row, (other, _) in replace.replaced.items()}
    return {"replaced": [first, instead], "skipped": [second, sorted(skip.skipped)]}


@job("batches/evaluation")
def batches_evaluation():
    from idmm_fast.loader import evaluation_loader

    found = {"rows": contents(evaluation_loader("jpg.beton", 3, 64, 1, rows=np.arange(1, 40, 4)))}
    for mode, size, how in itertools.product(("jpg", "raw"), (32, 112, 224), ("bicubic", "bilinear")):
        found[f"{mode}_{size}_{how}"] = contents(evaluation_loader(f"{mode}.beton", 16, size, 1, interpolation=how))
    return found


@job("batches/on_device")
def batches_on_device():
    """The loader whose crops torch makes, here on the CPU."""
    made = find("loader.gpu:DeviceLoader", "loader.gpu:GPULoader", "loader.on_device:DeviceLoader")
    cases = {
        "cutmix": {},
        "cutmix_chunk": {"cutmix_chunk": 4},
        "cutmix_per_row": {"cutmix_per_row": True},
        "no_augment": {"augment": augment(**OFF), "cutmix_alpha": 0},
        "process_1_of_2": {"rank": 1, "world_size": 2, "cutmix_chunk": 2},
    }
    found = {}
    for name, options in cases.items():
        loader = made("jpg.beton", 12, 1, seed=5, views=views(SIZES[:2]), device="cpu", **options)
        found[name] = [contents(loader), contents(loader)[:1]]
    loader = made("raw.beton", 12, 1, seed=5, views=views(SIZES[:2]), device="cpu")
    loader.load_state_dict({"epoch": 3, "step": 2})
    return found | {"resumed": contents(loader)}


# ---- losses --------------------------------------------------------------------------------------------------------


@job("losses/dense_and_fused")
def losses():
    """Both forms of the loss and all their gradients."""
    from idmm_fast.losses import fused_instance_loss, instance_loss

    found = {}
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randint(0, 103, (24,), generator=generator), torch.randint(0, 103, (24,), generator=generator)
    lam = torch.rand(24, generator=generator)
    leaves = [torch.randn(*shape, generator=generator) for shape in ((24, 12), (103, 12), (103,))]
    for dtype, eps in itertools.product((torch.float32, torch.float64), (0.0, 0.1)):
        for name, memory in (("dense", 0), ("fused", 1 << 30), ("fused_little_memory", 1000)):
            z, weight, bias = (t.to(dtype, copy=True).requires_grad_() for t in leaves)
            if name == "dense":
                loss = instance_loss(z @ weight.T + bias, a, b, lam.to(dtype), eps)
            else:
                loss = fused_instance_loss(z, weight, bias, a, b, lam.to(dtype), eps, memory=memory)
            loss.backward()
            found[f"{name}_{dtype}_{eps}".replace("torch.", "")] = [loss, z.grad, weight.grad, bias.grad]
    z, weight, bias = (t.clone().requires_grad_() for t in leaves)
    with torch.autocast("cpu", torch.bfloat16):
        loss = fused_instance_loss(z, weight, bias, a, b, lam, 0.1)
    loss.backward()
    found["fused_bfloat16"] = [loss, z.grad, weight.grad, bias.grad]
    found["dense_bfloat16"] = instance_loss(leaves[0].bfloat16(), a % 12, b % 12, 0.3, 0.1)
    return found


# ---- trainings -----------------------------------------------------------------------------------------------------

TINY = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
VIT = {"model.name": "vit_tiny_patch16_224", "model.options": TINY, "model.image_size": 32}
# 64 images: three steps of 20 and one of 4
BASE = VIT | {
    "data.train": "tiny_train.beton",
    "data.num_workers": 1,
    "training.epochs": 3,
    "training.batch_size": 20,
    "training.lr": 2e-3,
    "training.warmup_epochs": 1,
    "training.amp": "fp32",
    "training.compile": False,
    "training.device": "cpu",
    "training.checkpoint_every": 1,
}
TEST = {"data.test": "tiny_test.beton"}
SMALL = {
    "instance": {},
    "simclr": {"hidden": 16, "dim": 8},
    "supcon": {"hidden": 16, "dim": 8},
    "moco_v2": {"hidden": 16, "dim": 8, "momentum": 0.9},
    "moco_v3": {"hidden": 16, "dim": 8},
    "dino": {"hidden": 16, "bottleneck": 8, "outputs": 32, "momentum": 0.9},
}
TIMES = ("images_per_s", "wait", "data_wait")


def tensors(tree):
    """The tensors of a tree, in any order."""
    if isinstance(tree, torch.Tensor):
        return [tree]
    inner = tree.values() if isinstance(tree, dict) else tree if isinstance(tree, list | tuple) else ()
    return [t for entry in inner for t in tensors(entry)]


def outcome(folder):
    """What a run folder holds: the curve, the weights, the last checkpoint, results."""
    folder, found = Path(folder), {}
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    lines = [{key: value for key, value in line.items() if key not in TIMES} for line in lines]
    found["curve"] = [{"nonfinite_steps" if key == "skipped" else key: line[key] for key in line} for line in lines]
    for name in ("backbone.safetensors", "model.safetensors", "config.json", "result.json"):
        if (folder / name).exists():
            found[name] = folder / name
    kept = sorted((folder / "checkpoints").glob("epoch_*_step_*.pt"), key=lambda p: int(p.stem.rsplit("_", 1)[1]))
    for path in [*kept[-1:], *(folder / "checkpoints").glob("best.pt")]:
        state = torch.load(path, weights_only=True)
        parts = sorted(sha256(tensor) for key in ("model", "optimizer", "random") for tensor in tensors(state.get(key)))
        found["best.pt" if path.name == "best.pt" else "checkpoint"] = [path.name, parts]
    return found


def train(script, folder, values, *options):
    """A training in the run folder `folder`, with `values` over BASE."""
    call(script, *options, *arguments(script, BASE | values), f"--logging.run_dir={folder}")
    return outcome(folder)


def method(name):
    """The arguments of a method: its file, and projections as small as the backbone."""
    return ["--config", str(ROOT / f"rn_configs/methods/{name}.yaml"), f"--method.options={json.dumps(SMALL[name])}"]


PRETRAININGS = yaml.safe_load("""
    idmm: {}
    idmm_dense: {head.loss: dense, model.drop_path: 0.0}
    idmm_fused: {head.loss: fused, head.workspace_mb: 1}
    idmm_fused_by_size: {head.max_dense_mb: 0}
    idmm_sampled: {head.sample_rate: 0.5, model.drop_path: 0.3}
    idmm_clip: {training.clip_grad: 0.01, training.decay_norm_bias: false}
    idmm_weight_decay: {training.weight_decay: 0.05, training.weight_decay_end: 0.5}
    idmm_head_lr: {training.head_lr_scale: 10.0, training.label_smoothing: 0.0}
    idmm_seed: {training.seed: 3, training.warmup_epochs: 0.5}
    idmm_chunk: {cutmix.chunk_size: 5, cutmix.alpha: 1.0}
    idmm_per_sample: {cutmix.per_sample: true}
    idmm_augment:
      augment.flip_prob: 0.2
      augment.jitter_prob: 0.5
      augment.brightness: 0.4
      augment.contrast: 0.3
      augment.saturation: 0.2
      augment.hue: 0.1
      augment.grayscale_prob: 0.4
      augment.blur_prob: 0.9
      augment.blur_sigma: [0.2, 1.0]
      augment.randaugment: 1
    idmm_on_device: {data.augment_on: device}
    idmm_online_eval: {data.test: tiny_test.beton, online_eval.every: 2, online_eval.linear: true}
    idmm_damaged: {data.train: damaged.beton, data.on_error: replace, training.epochs: 2}
    idmm_bf16: {training.amp: bf16}
    pvt_v2:
      crops.groups: [{count: 2, scale: [0.3, 1.0]}, {count: 3, scale: [0.1, 0.5], size: 64}]
      model.name: pvt_v2_b0
      model.options: {depths: [1, 1, 1, 1], embed_dims: [8, 16, 24, 32], num_heads: [1, 2, 3, 4]}
    t2t_vit: {model.name: t2t_vit_7, model.options: {depth: 1}, training.epochs: 2}
    swin:
      model.name: swin_tiny_patch4_window7_224
      model.options: {depths: [1, 1], num_heads: [2, 4], embed_dim: 24, window_size: 4}
    dry_run: {training.max_steps: 5}
    """)


def pretraining(name, values, *options):
    return train("train_idmm.py", f"runs/{name}", values, *options)


for _name, _values in PRETRAININGS.items():
    job(f"pretrain/{_name}", _name, _values)(pretraining)
for _name in SMALL:
    job(f"pretrain/{_name}", _name, {}, *method(_name))(pretraining)


@job("pretrain/nonfinite")
def nonfinite():
    """A loss that becomes NaN: the steps are skipped, and the script ends with an error."""
    values = {"training.lr": 1e30, "training.warmup_epochs": 0, "training.max_nonfinite_steps": 3}
    call("train_idmm.py", *arguments("train_idmm.py", BASE | values), "--logging.run_dir=runs/nonfinite", code=1)
    return outcome("runs/nonfinite")


FINETUNINGS = yaml.safe_load("""
    scratch: {training.evaluate_every: 1, training.epochs: 4}
    init: {model.init: runs/idmm}
    init_file: {model.init: runs/idmm/backbone.safetensors, model.image_size: 48}
    init_head: {model.init: runs/finetune_scratch, model.init_head: true}
    no_mixing: {mixup_cutmix.alpha: 0, training.label_smoothing: 0}
    randaugment: {augment.randaugment: 1, augment.blur_prob: 0.5, crops.scale: [0.3, 0.9], mixup_cutmix.alpha: 1.0}
    no_augment: {augment.randaugment: 0, augment.jitter_prob: 0, augment.flip_prob: 0}
    per_class: {data.per_class: 7, training.clip_grad: 1.0, training.head_lr_scale: 3}
    pvt_v2: {model.name: pvt_v2_b0, model.options: {depths: [1, 1, 1, 1]}, training.epochs: 2}
    """)
NEEDS = {"init": ["pretrain/idmm"], "init_file": ["pretrain/idmm"], "init_head": ["finetune/scratch"]}


def finetuning(name, values):
    return train("finetune.py", f"runs/finetune_{name}", TEST | {"training.evaluate_every": 2} | values)


for _name, _values in FINETUNINGS.items():
    job(f"finetune/{_name}", _name, _values, needs=NEEDS.get(_name, ()))(finetuning)


@job("finetune/stages", needs=("pretrain/idmm",))
def stages():
    second = {"model.image_size": 48, "training.epochs": 1, "training.batch_size": 8, "training.lr": 1e-4}
    values = BASE | TEST | {"progressive.stages": [{"training.epochs": 2}, second]}
    options = ["--init", "runs/idmm", "--stages", "--logging.run_dir=runs/stages"]
    call("finetune.py", *arguments("finetune.py", values), *options)
    found = {f"{k} {part}": value for k in (1, 2) for part, value in outcome(f"runs/stages/stage_{k}").items()}
    return found | {"result.json": Path("runs/stages/result.json")}


# ---- resume --------------------------------------------------------------------------------------------------------


def cut_back(folder, step):
    """As if the run had been killed after the checkpoint of `step` steps."""
    for path in (Path(folder) / "checkpoints").glob("epoch_*"):
        if int(path.stem.rsplit("_", 1)[1]) > step:
            path.unlink()
    for name in ("backbone.safetensors", "model.safetensors", "result.json", "best.pt", "best.sha256"):
        (Path(folder) / ("checkpoints" if "best" in name else "") / name).unlink(missing_ok=True)


def resumed(name, script, values, options=()):
    """A run with a checkpoint after every step; killed after step 6, in mid-epoch, and resumed."""
    folder = f"runs/resumed_{name}"
    values = values | {"training.checkpoint_minutes": 1e-9, "training.keep_checkpoints": 100, "training.resume": "auto"}
    whole = train(script, folder, values, *options)
    whole = {part: sha256(value) for part, value in whole.items()}
    cut_back(folder, 6)
    found = train(script, folder, values, *options)
    return found | {"as if never stopped": {part: sha256(value) == whole[part] for part, value in found.items()}}


_values = {"head.sample_rate": 0.5, "model.drop_path": 0.3}
job("resume/idmm_sampled", "sampled", "train_idmm.py", _values)(resumed)
job("resume/moco_v2", "moco_v2", "train_idmm.py", {}, method("moco_v2"))(resumed)
job("resume/dino", "dino", "train_idmm.py", {}, method("dino"))(resumed)
job("resume/finetune", "finetune", "finetune.py", TEST | {"training.evaluate_every": 1})(resumed)


@job("resume/signal")
def resume_signal():
    """Stopped by SIGTERM at some step, and resumed; where it was stopped does not matter."""
    values, metrics = {"training.resume": "auto", "training.epochs": 12}, Path("runs/signal/metrics.jsonl")

    def stop():
        while not (metrics.exists() and metrics.read_text().count("\n") >= 5):
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    options = [*arguments("train_idmm.py", BASE | values), "--logging.run_dir=runs/signal"]
    call("train_idmm.py", *options, code=128 + signal.SIGTERM)
    assert metrics.read_text().count("\n") < 48, "it was not stopped"
    return train("train_idmm.py", "runs/signal", values)


# ---- two processes -------------------------------------------------------------------------------------------------


def two(name, script, values, options=()):
    """A run of two processes: this one and a forked one, with the environment that torchrun makes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    os.environ |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    other = os.fork()
    os.environ["RANK"] = os.environ["LOCAL_RANK"] = "0" if other else "1"
    try:
        found = train(script, f"runs/two_{name}", {"training.batch_size": 36} | values, *options)
    finally:
        if not other:
            os._exit(0)
    os.waitpid(other, 0)
    return found


def torchrun(name, script, values):
    """A run of two processes that torchrun starts."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(ROOT / script)]
    command += [*arguments(script, BASE | {"training.batch_size": 36} | values), f"--logging.run_dir=runs/two_{name}"]
    subprocess.run(command, check=True)
    return outcome(f"runs/two_{name}")


job("two/idmm_sharded", "sharded", "train_idmm.py", {"head.loss": "fused", "cutmix.chunk_size": 3})(torchrun)
job("two/idmm_sampled", "sampled", "train_idmm.py", {"head.sample_rate": 0.5, "training.epochs": 2})(two)
_values = {"head.loss": "dense", "model.drop_path": 0.3, "training.clip_grad": 0.1}
job("two/idmm_dense", "dense", "train_idmm.py", _values)(two)
for _name in SMALL:
    job(f"two/{_name}", _name, "train_idmm.py", {"training.epochs": 2}, method(_name))(two)
job("two/finetune", "finetune", "finetune.py", TEST | {"training.epochs": 2})(two)


@job("two/resumed_by_one", needs=("two/idmm_sharded",))
def resumed_by_one():
    """One process goes on with what two began."""
    shutil.copytree("runs/two_sharded", "runs/by_one")
    cut_back("runs/by_one", 2)
    values = {"training.batch_size": 36, "head.loss": "fused", "cutmix.chunk_size": 3, "training.resume": "auto"}
    return train("train_idmm.py", "runs/by_one", values)


# ---- evaluation, Python --------------------------------------------------------------------------------------------


def figures(*options, **values):
    """The names and percents that evaluate.py prints; of 32 images two decimals are exact."""
    values = {key.replace("__", "."): value for key, value in values.items()}
    shown = call("evaluate.py", *options, *arguments("evaluate.py", values), "--logging.run_dir=null")
    return re.findall(r"(\w+) ([\d.]+) %", shown)


@job("evaluate/run", needs=("pretrain/idmm",))
def evaluate_run():
    run = ["--checkpoint", "runs/idmm", "--data", "tiny_train.beton", "--test", "tiny_test.beton"]
    return {
        "defaults": figures(*run),
        "options": figures(*run, linear__C=0.01, knn__temperature=1.0),
        "no linear probe": figures(*run, linear__enabled=False),
        "more pixels": figures(*run, model__image_size=64),
    }


@job("evaluate/random_weights")
def evaluate_random():
    values = VIT | TEST | {"data.train": "tiny_train.beton", "training.amp": "fp32", "training.seed": 4}
    return {"defaults": figures(*arguments("evaluate.py", values))}


def sections(script, values):
    """{section: {key: value}} of {key as it is called now: value}."""
    found = {}
    for key, value in values.items():
        section, _, name = key_of(script, key).partition(".")
        found.setdefault(section, {})[name] = value
    return found


@job("api/run")
def api_run():
    """Pretraining, fine-tuning and features from a folder of images."""
    import idmm_fast

    here = {k: v for k, v in BASE.items() if not k.startswith(("model.", "data.", "training.epochs"))}
    model = {key.partition(".")[2]: value for key, value in VIT.items()}
    values = sections("train_idmm.py", here | {"cutmix.chunk_size": 4})
    run = idmm_fast.pretrain("tree", out="runs/api", model=model, epochs=2, **values)
    found = {f"pretrain {k}": v for k, v in outcome(run).items()}
    values = sections("finetune.py", here)
    tuned = idmm_fast.finetune("tree", out="runs/api_tuned", init=run, epochs=2, model={"image_size": 32}, **values)
    found |= {f"finetune {k}": v for k, v in outcome("runs/api_tuned").items()} | {"finetune returned": tuned}
    features, files = idmm_fast.embed("tree", checkpoint=run, out="features.npz", image_size=64)
    idmm_fast.embed("raw.beton", checkpoint=run, out="features.csv")
    with np.load("features.npz") as saved:
        found["npz"] = {key: saved[key].tolist() if key == "files" else saved[key] for key in saved.files}
    return found | {"features": features, "files": list(map(str, files)), "csv": Path("features.csv")}


# ---- recipes -------------------------------------------------------------------------------------------------------


def values_of(script, *files):
    """{key as it is called now: value} that these files of rn_configs resolve to."""
    name = {"train_idmm.py": "pretrain", "finetune.py": "finetune", "evaluate.py": "evaluate"}[script]
    schema = find(f"config.{name}:SCHEMA", f"train.{name}:SCHEMA", "evaluate.judge:SCHEMA")
    parse, as_dict = find("config:parse"), find("config:as_dict")
    given = [] if files else ["--data.train=a.beton", "--data.test=b.beton", "--model.name=deit_tiny_patch16_224"]
    given += [f"--config={ROOT / 'rn_configs' / file}" for file in files]
    found = {}
    for section, values in as_dict(parse(schema, [*given, "--logging.run_dir=here"], "")).items():
        found |= {RENAMED.get(f"{section}.{key}", f"{section}.{key}"): value for key, value in values.items()}
    new = getattr(importlib.import_module("idmm_fast.train.run_dir"), "BEFORE_THE_KEY", {})
    off = {f"{section}.{key}": value for section, values in new.items() for key, value in values.items()}
    found.pop("data.cache", None)  # it changes no number
    return {key: value for key, value in found.items() if key not in off or value != off[key]}


def files_of(dataset, backbone, finetune):
    """The files of a recipe, as they are called now or were before; [] if there is none."""
    now = [f"finetune/{dataset}.yaml" if finetune else f"{dataset}.yaml"]
    now += [f"{'finetune/' if finetune else ''}backbones/{backbone}.yaml"] if backbone else []
    before = [dataset + (f"_{backbone}" if backbone else "") + ("_finetune" if finetune else "") + ".yaml"]
    there = [files for files in (now, before) if all((ROOT / "rn_configs" / f).exists() for f in files)]
    return there[0] if there else []


DATASETS = (
    "aircraft",
    "cars",
    "cub",
    "dtd",
    "flowers",
    "imagenet",
    "indoor67",
    "pets",
    "sin10k",
    "sin10k-total",
    "demo",
)
for _dataset, _finetune in itertools.product(DATASETS, (False, True)):

    @job(f"recipes/{_dataset}{'_finetune' if _finetune else ''}", _dataset, _finetune)
    def recipe(dataset, finetune):
        script, found = "finetune.py" if finetune else "train_idmm.py", {}
        for backbone in ("", "pvt_v2_b0", "t2t_vit_7", "t2t_vit_t_14") if dataset != "demo" else ("",):
            files = files_of(dataset, backbone, finetune)
            if not (finetune and dataset.startswith("sin10k")):  # for pretraining only
                found[backbone or "deit_tiny"] = values_of(script, *files) if files else "no such recipe"
        return found


@job("recipes/methods")
def recipes_of_methods():
    (pets,) = files_of("pets", "", False)
    return {name: values_of("train_idmm.py", pets, f"methods/{name}.yaml") for name in ("idmm", *SMALL)}


@job("recipes/defaults")
def defaults():
    return {script: values_of(script) for script in ("train_idmm.py", "finetune.py", "evaluate.py")}


# ---- record, compare -----------------------------------------------------------------------------------------------


def warm_up():
    """Import all modules, and compile the kernels or read them from the disk, once, before the jobs fork."""
    import idmm_fast

    for module in pkgutil.walk_packages(idmm_fast.__path__, "idmm_fast."):
        with contextlib.suppress(ImportError):  # a benchmark's baseline that is not installed
            importlib.import_module(module.name)
    importlib.import_module("torch.utils.tensorboard")
    from idmm_fast.loader import MultiCropLoader, evaluation_loader

    for mode in ("jpg", "raw"):
        loaders = [MultiCropLoader(f"{mode}.beton", 4, 1), evaluation_loader(f"{mode}.beton", 4, 32, 1)]
        bicubic = views([(1, 32)], interpolation="bicubic")
        loaders.append(MultiCropLoader(f"{mode}.beton", 4, 1, views=bicubic, augment=augment(randaugment=2)))
        for loader in loaders:
            next(iter(loader))
            loader.close()
    del loader, loaders
    gc.collect()  # with a loader go its threads; a process that forks had better have none
    assert threading.active_count() == 1, threading.enumerate()


def make(only, show):
    """{name: digest} of the jobs whose names begin with `only`, run in the current folder; show(digests) after each."""
    os.environ["IDMM_FAST_CACHE"] = str(Path("cache").absolute())
    warnings.filterwarnings("ignore")
    tqdm.monitor_interval = 0  # no thread of its own
    import idmm_fast

    if ROOT not in Path(idmm_fast.__file__).parents:
        raise SystemExit(f"error: {ROOT} is not the root of a tree; idmm_fast comes from {idmm_fast.__file__}")
    torch.set_num_threads(1)
    write_tree()
    write_betons()
    warm_up()
    for script in ("train_idmm.py", "finetune.py", "evaluate.py"):
        key_of(script, "")
    found, done = {}, set()

    def once(name):
        function, needs = JOBS[name]
        for other in needs:
            once(other)
        if name not in done:
            done.add(name)
            began = time.monotonic()
            digests = in_a_child(name, function)
            if name.startswith(only):
                found.update(digests)
                show(digests)
                for key in digests:
                    if key.endswith(" error"):
                        print(f"{key}: {digests[key]}", file=sys.stderr)
                print(f"{name}: {len(digests)} digests, {time.monotonic() - began:.1f} s", file=sys.stderr, flush=True)

    for name in JOBS:
        if name.startswith(only):
            once(name)
    return found


def surroundings():
    """What the last bits depend on beside the code."""
    processor = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    packages = ["torch", "timm", "numpy", "numba", "pillow", "scikit-learn", "scipy", "opencv-python", "ffcv"]
    versions = {package: version(package) for package in packages}
    return {"processor": processor and processor[1], "python": platform.python_version()} | versions


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("record", "compare"))
    parser.add_argument("file", type=Path, metavar="FILE.json", help="where the digests are kept")
    parser.add_argument("--only", default="", metavar="PREFIX", help="only digests whose names begin so: a/,b/")
    parser.add_argument(
        "--keep", action="store_true", help="keep the folder of all that was written, and print its name"
    )
    args = parser.parse_args()
    path, before, only = args.file.absolute(), {}, tuple(args.only.split(","))
    if args.what == "compare" or (args.only and path.exists()):
        before = json.loads(path.read_text())
        for key, value in surroundings().items():
            if before["surroundings"].get(key) != value:
                print(f"warning: {key} was {before['surroundings'].get(key)} and is {value}", file=sys.stderr)
    wanted = {key: value for key, value in before.get("digests", {}).items() if key.startswith(only)}

    def show(digests):
        for key in digests if args.what == "compare" else ():
            same = "same   " if digests[key] == wanted.get(key) else "differs"
            print(same, key, *([] if key in wanted else ["(not recorded)"]), flush=True)

    began, folder = time.monotonic(), Path(tempfile.mkdtemp(prefix="digests_"))
    try:
        os.chdir(folder)
        found = make(only, show)
    finally:
        os.chdir(ROOT)
        if args.keep:
            print(f"kept: {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder)
    print(f"{len(found)} digests in {time.monotonic() - began:.0f} s", file=sys.stderr)
    failed = [key for key in found if key.endswith(" error")]
    if args.what == "record":
        kept = {key: value for key, value in before.get("digests", {}).items() if not key.startswith(only)}
        content = {"surroundings": surroundings(), "digests": kept | found}
        path.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
        sys.exit(f"error: {', '.join(failed)}" if failed else 0)
    for key in sorted(wanted.keys() - found.keys()):
        print(f"differs {key} (recorded, and missing here)")
    differ = sum(wanted.get(key) != found.get(key) for key in wanted | found)
    print(f"{len(wanted | found) - differ} same, {differ} differ")
    sys.exit(1 if differ else 0)


if __name__ == "__main__":
    main()
