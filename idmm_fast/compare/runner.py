"""Methods against each other: a grid of cells, each a pretraining, its judgement and a fine-tuning; what is done is not done again.

A cell is run in a process of its own, so that its memory can be told and its death harms no other; results.jsonl has a line for each.
"""

import faulthandler
import fcntl
import functools
import hashlib
import json
import multiprocessing
import os
import resource
import shutil
import signal
import sys
import threading
import time
from collections import Counter
from dataclasses import asdict, dataclass
from itertools import product
from multiprocessing.connection import wait
from pathlib import Path

import yaml
from tqdm import tqdm

from ..config import ConfigError, as_dict, build, flatten, read
from ..errors import Stopped
from ..limits import cores

RANDOM = "random"  # no pretraining
KINDS = ("model", "pretrain", "finetune", "methods", "warmup", "min_scale")


@dataclass(frozen=True)
class Cell:
    """What is trained on what: pretraining on `images` (0: all) of `dataset` by `method` for `budget` crops, fine-tuning on `target` ("same": those very
    images) for `finetune_budget` crops."""

    dataset: str
    images: int
    sampling: str
    method: str
    seed: int
    budget: int
    target: str
    finetune_budget: int

    @property
    def pretraining(self):
        """What cells share that begin from the same weights."""
        return (self.dataset, self.images, self.sampling, self.method, self.seed, self.budget)


class Setup:
    """A file like rn_configs/compare/small.yaml: model, what all pretrainings share, what all fine-tunings share, what single methods have otherwise; `warmup`, a
    share of the epochs (without it everything warms up as long as its own file says), and `min_scale`, the least share of an image that a crop takes.

    Raises ConfigError.
    """

    def __init__(self, path):
        self.path = Path(path)
        if not self.path.exists():
            raise ConfigError(f"{path} does not exist; rn_configs/compare/small.yaml is one to begin from")
        self.tree = yaml.safe_load(self.path.read_text(encoding="utf-8")) or {}
        for key in self.tree:
            if key not in KINDS:
                raise ConfigError(f"{path}: there is no key '{key}'; there are {', '.join(KINDS)}")
        self.min_scale = float(self.tree.get("min_scale", 0.0))

    def like(self, method):
        """The method that `method` is a variant of; itself if it is none."""
        return (self.tree.get("methods", {}).get(method) or {}).get("like", method)

    def _shared(self, schema, training):
        """What all trainings of a kind, "pretrain" or "finetune", have."""
        return flatten(schema, {"model": self.tree.get("model", {})}, str(self.path)) | flatten(
            schema, self.tree.get(training), str(self.path)
        )

    def _method(self, method):
        from ..config.pretrain import SCHEMA

        own = dict(self.tree.get("methods", {}).get(method) or {})
        base = own.pop("like", None)
        if base is None:
            beside, above = (folder / "methods" for folder in (self.path.parent, self.path.parent.parent))
            file = (beside if beside.exists() else above) / f"{method}.yaml"
            if not file.exists():
                known = sorted(
                    {p.stem for p in file.parent.glob("*.yaml")} | set(self.tree.get("methods", {})) | {RANDOM}
                )
                raise ConfigError(f"there is no method '{method}'; there are {', '.join(known)}")
            values = read(SCHEMA, file)
            values |= self._shared(SCHEMA, "pretrain")
        else:
            values = self._method(base)
        return values | flatten(SCHEMA, own, f"{self.path}, methods.{method}")

    def pretraining(self, cell, train, images, folder):
        """The configuration of a pretraining on the beton `train`, which has `images` images; None for random initialisation."""
        from ..config.pretrain import SCHEMA

        if cell.method == RANDOM:
            return None
        values = self._method(cell.method)
        groups = build(SCHEMA, {"data.train": "x", "logging.run_dir": "x", **values}).crops.groups
        for group in groups:
            group["scale"] = [max(share, self.min_scale) for share in group["scale"]]
        epochs = max(1, round(cell.budget / (images * sum(group["count"] for group in groups))))
        return build(SCHEMA, {**values, "crops.groups": groups, **self._common(cell, train, epochs, folder)})

    def finetuning(self, cell, train, test, images, init, folder):
        """The configuration of a fine-tuning on the beton `train`, which has `images` images, from the weights `init`."""
        from ..config.finetune import SCHEMA

        epochs = max(1, round(cell.finetune_budget / images))
        values = self._shared(SCHEMA, "finetune")
        return build(
            SCHEMA,
            {
                "training.evaluate_every": max(1, epochs // 6),
                **values,
                "data.test": str(test),
                "model.init": init and str(init),
                **self._common(cell, train, epochs, folder),
            },
        )

    def judging(self, tuned, target, test, init):
        """The configuration that judges frozen features, of `init` or of random weights: all at the resolution of the
        section `pretrain`. tuned: the configuration of the fine-tuning."""
        from ..config.evaluate import SCHEMA
        from ..train import pretraining as pretrain

        size = self._shared(pretrain.SCHEMA, "pretrain").get(
            "model.image_size", pretrain.SCHEMA["model"][1]["image_size"].default
        )
        return build(
            SCHEMA,
            {
                "data.train": str(target),
                "data.test": str(test),
                "model.init": init and str(init),
                "model.image_size": size,
                "model.name": tuned.model.name,
                "model.options": tuned.model.options,
                "training.seed": tuned.training.seed,
                "training.device": tuned.training.device,
                "training.amp": tuned.training.amp,
            },
        )

    def _common(self, cell, train, epochs, folder):
        warmup = {"training.warmup_epochs": float(self.tree["warmup"]) * epochs} if "warmup" in self.tree else {}
        return {
            "data.train": str(train),
            "training.epochs": epochs,
            **warmup,
            "training.seed": cell.seed,
            "training.resume": "auto",
            "training.keep_checkpoints": 1,
            "training.checkpoint_every": 1 << 20,
            "logging.run_dir": str(folder),
        }


# What cells are trained with besides their configuration; a line of results.jsonl without `recipe` has 1. A change of code by
# which the same configuration trains otherwise is a new number: what was run by an older recipe does not count as done.
RECIPES = {
    1: "fine-tuned with timm's first set of RandAugment's operations, whose strengths do not grow with the level and which made one image of 87 black",
    2: "fine-tuned with RandAugment as the authors' released code has it",
}
RECIPE = max(RECIPES)

# Of all keys only these are left out of a cell's settings. They change nothing, or but the rounding (device, compile,
# channels_last); or they are told otherwise: the seed by the cell, files by what they hold, weights by the pretraining.
_FREE = {
    "data.train",
    "data.test",
    "data.num_workers",
    "model.init",
    "training.seed",
    "training.device",
    "training.compile",
    "training.channels_last",
    "training.resume",
    "training.checkpoint_every",
    "training.checkpoint_minutes",
    "training.keep_checkpoints",
    "training.max_nonfinite_steps",
    "online_eval.every",
    "online_eval.linear",
    "progressive.stages",
    "logging.run_dir",
}


def _counted(cfg):
    """{"section.key": value} of what a result depends on; the precision as this machine has it, whatever auto says."""
    from ..runtime.device import choose

    values = {f"{section}.{key}": value for section, keys in as_dict(cfg).items() for key, value in keys.items()}
    return {key: value for key, value in values.items() if key not in _FREE} | {
        "training.amp": str(choose(cfg.training, 0).amp)
    }


def _digest(*what):
    """Eight letters that differ where `what`, as JSON, differs."""
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:8]


@functools.lru_cache
def _opened(path, *state):
    from ..beton import open_beton

    return open_beton(path)


def _open(path):
    """What open_beton gives, once as long as the file is as it was; its fingerprint may mean reading all of it."""
    state = path.stat() if path.exists() else None
    return _opened(path, *((state.st_ino, state.st_size, state.st_mtime_ns) if state else ()))


class Betons:
    """The files of the data folder, and of the subsets that are made of them in `made`."""

    def __init__(self, folder, made):
        self.folder, self.made = Path(folder), Path(made)

    def path(self, dataset, split):
        """NAME is data/NAME_train.beton and data/NAME_test.beton; a path is the same with a folder before it."""
        return (self.folder / dataset if os.sep not in dataset else Path(dataset)).with_name(
            f"{Path(dataset).name}_{split}.beton"
        )

    def of(self, cell):
        """(training beton of the dataset, of which the subset is made, that of the target, the target's test beton)."""
        target = cell.dataset if cell.target == "same" else cell.target
        return self.path(cell.dataset, "train"), self.path(target, "train"), self.path(target, "test")

    def rows(self, cell):
        """Which rows of its dataset a cell is pretrained on; None: all.

        Raises what open_beton does, ConfigError where it has too few.
        """
        from ..beton.subset import sample_rows

        whole = self.path(cell.dataset, "train")
        try:
            return (
                sample_rows(_open(whole).label, cell.images, cell.sampling == "balanced", cell.seed)
                if cell.images
                else None
            )
        except ValueError as error:
            raise ConfigError(f"{whole}: {error}") from None

    def train(self, cell):
        """The training beton of a cell, made if it is a subset and there is none of these rows of these images.

        Raises what `rows` and write_subset do.
        """
        from ..beton.subset import write_subset

        whole, rows = self.path(cell.dataset, "train"), self.rows(cell)
        if rows is None:
            return whole
        mark = _digest(_open(whole).fingerprint, rows.tolist())
        out = self.made / f"{whole.stem.removesuffix('_train')}_{cell.images}_{cell.sampling}_{cell.seed}_{mark}.beton"
        if not out.exists():
            write_subset(whole, rows, out)
        return out


class Results:
    """results.jsonl: a line a finished cell; a last line that was cut short is dropped. Raises ConfigError where another one is none."""

    def __init__(self, folder):
        self.path = Path(folder) / "results.jsonl"
        self.lines = []
        if self.path.exists():
            text = self.path.read_text().splitlines()
            for number, line in enumerate(text, 1):
                try:
                    self.lines.append(json.loads(line))
                except ValueError:
                    if number < len(text):
                        raise ConfigError(
                            f"line {number} of {self.path} is damaged; mend it, or take it out to have that cell run again"
                        ) from None

    def add(self, line):
        """Write the line, to the disk."""
        self.lines.append(line)
        temporary = self.path.with_suffix(".tmp")
        with open(temporary, "w") as file:
            file.write("".join(json.dumps(entry) + "\n" for entry in self.lines))
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path)

    def done(self):
        """{(cell, settings): line}."""
        return {
            (Cell(**{k: line[k] for k in Cell.__dataclass_fields__}), line["settings"]): line for line in self.lines
        }


class Runner:
    """Runs the cells of one pretraining, in this process."""

    def __init__(self, setup, betons, folder, threads):
        self.setup, self.betons, self.folder, self.threads = setup, betons, Path(folder) / "runs", threads

    def settings(self, cell, recipe=RECIPE):
        """What a cell's result depends on besides the cell: letters of the pretraining, of fine-tuning and judgement (each
        of configuration, betons and recipe), and of the rows where not all are used."""
        whole, target, test = map(_open, self.betons.of(cell))
        images = cell.images or len(whole)
        labelled = images if cell.target == "same" else len(target)
        pretraining = self.setup.pretraining(cell, "x", images, "x")
        tuning = self.setup.finetuning(cell, "x", "x", labelled, None, "x")
        parts = [
            RANDOM if pretraining is None else _digest(recipe, _counted(pretraining), whole.fingerprint),
            _digest(
                recipe,
                _counted(tuning),
                _counted(self.setup.judging(tuning, "x", "x", None)),
                target.fingerprint,
                test.fingerprint,
            ),
        ]
        if cell.images:
            parts.append(_digest(self.betons.rows(cell).tolist()))
        return "-".join(parts)

    def run(self, cells, tell):
        """Each cell's results, given to tell(cell, results), one after another."""
        import torch

        from ..beton import open_beton
        from ..evaluate import frozen as judging
        from ..train.finetuning import finetune

        torch.set_num_threads(self.threads)
        first = cells[0]
        train = self.betons.train(first)
        images = len(open_beton(train))
        pretraining, _, *rows = self.settings(first).split("-")
        home = self.folder / f"{Path(first.dataset).name}_{first.images or 'all'}_{first.sampling}"
        home = home / "_".join([first.method, str(first.seed), pretraining, *rows])
        common = self._pretrain(first, train, images, home / "pretrain")
        init = None if first.method == RANDOM else home / "pretrain" / "backbone.safetensors"
        judged = {}
        for cell in cells:
            _, target, test = self.betons.of(cell)
            target = train if cell.target == "same" else target
            folder = (
                home / f"finetune_{Path(cell.target).name}_{cell.finetune_budget}_{self.settings(cell).split('-')[1]}"
            )
            cfg = self._threaded(self.setup.finetuning(cell, target, test, len(open_beton(target)), init, folder))
            began = time.monotonic()
            result = finetune(cfg)
            seconds = time.monotonic() - began
            curve = [
                [line["epoch"] + 1, line["top1"]]
                for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
                if "top1" in line
            ]
            _tidy(folder, "model.safetensors")
            if cell.target not in judged:
                asked = self.setup.judging(cfg, target, test, init)
                judged[cell.target] = judging.evaluate_frozen(asked) | {"judged_at": asked.model.image_size}
            tell(
                cell,
                {
                    **common,
                    **judged[cell.target],
                    "top1": result["top1"],
                    "top5": result["top5"],
                    "labels": result["train_images"],
                    "curve": curve,
                    "finetune_seconds": round(seconds, 1),
                    "finetune_epochs": cfg.training.epochs,
                },
            )

    def _threaded(self, cfg):
        cfg.data.num_workers = cfg.data.num_workers or self.threads
        return cfg

    def _pretrain(self, cell, train, images, folder):
        """{"crops", "epochs", "pretrain_seconds", "peak_mb"}; what a finished pretraining said is kept beside it."""
        from ..files import load_or_compute
        from ..train import checkpoint
        from ..train.pretraining import pretrain

        if cell.method == RANDOM:
            return {"crops": 0, "epochs": 0, "pretrain_seconds": 0.0, "peak_mb": None}

        def make():
            cfg = self._threaded(self.setup.pretraining(cell, train, images, folder))
            before = checkpoint.listing(folder / "checkpoints")
            already = int(before[-1].stem.rsplit("_", 1)[1]) if before else 0
            began = time.monotonic()
            pretrain(cfg)
            steps = len((folder / "metrics.jsonl").read_text().splitlines())
            seconds = (
                (time.monotonic() - began) * steps / max(1, steps - already)
            )  # of a run that was stopped: as if it had not been
            seen = cfg.training.epochs * images * sum(group["count"] for group in cfg.crops.groups)
            return {
                "crops": seen,
                "epochs": cfg.training.epochs,
                "pretrain_seconds": round(seconds, 1),
                "peak_mb": _peak_mb(),
            }

        cost = load_or_compute(folder / "cost.json", make)
        _tidy(folder)
        return cost


def _peak_mb():
    """The most memory that this process has had: of the GPU, where it has one."""
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return round(torch.cuda.max_memory_allocated() / 2**20)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)


def _tidy(folder, *files):
    """Remove what a finished run does not need any more."""
    for name in ("checkpoints", "events"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in files:
        (folder / name).unlink(missing_ok=True)


def _work(runner, cells, log, pipe):
    """A child: run these cells, its output to a file; it ends when the parent does."""
    os.setsid()  # Ctrl-C is for the parent, which passes it on
    with open(log, "a", buffering=1) as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    sys.stdout.reconfigure(line_buffering=True)
    faulthandler.enable()
    parent = multiprocessing.parent_process()
    threading.Thread(target=lambda: (parent.join(), os.kill(os.getpid(), signal.SIGTERM)), daemon=True).start()
    try:
        runner.run(cells, lambda cell, result: pipe.send((cell, result, None)))
    except Exception as error:
        from ..train.signals import Interrupted

        if not isinstance(error, Interrupted):
            import traceback

            traceback.print_exc()
            pipe.send((None, None, f"{type(error).__name__}: {error}"))


def crops(text, images):
    """How many crops a budget like 400000, 4e5 or 4800x (so many for each of the images) means. Raises ConfigError."""
    try:
        number = float(text.removesuffix("x")) * (images if text.endswith("x") else 1)
        if not number >= 1:
            raise ValueError
    except ValueError:
        raise ConfigError(
            f"a budget is a number of crops like 400000, or of crops an image like 4800x, not {text}"
        ) from None
    return int(number)


def make_cells(datasets, images, samplings, methods, seeds, targets, budget, finetune_budgets, data):
    """All combinations, seed after seed; the budgets as `crops` reads them. data: the folder of the betons. Raises ConfigError, FileNotFoundError,
    BetonError."""
    from ..beton import open_beton

    betons, cells = Betons(data, data), []
    sizes = {d: len(open_beton(betons.path(d, "train"))) for d in {*datasets, *targets} - {"same"}}
    for seed, dataset, n, sampling, method, target, tuning in product(
        seeds, datasets, images, samplings, methods, targets, finetune_budgets
    ):
        first = n or sizes[dataset]
        labelled = first if target == "same" else sizes[target]
        pretrain = 0 if method == RANDOM else crops(budget, first)
        cells.append(
            Cell(dataset, n, sampling if n else "balanced", method, seed, pretrain, target, crops(tuning, labelled))
        )
    return cells


def compare(cells, setup, data, out, jobs=1):
    """Run what is not done of `cells` (Cell), `jobs` pretrainings at a time. Returns (lines of results.jsonl, sentences about those that failed).

    Raises ConfigError, BetonError and FileNotFoundError before anything begins; Stopped after Ctrl-C or SIGTERM.
    """
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with open(out / ".lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"another comparison is running in {out}; wait for it, or use another --out") from None
        return _compare(cells, setup, Betons(data, out / "runs" / "subsets"), out, jobs)


def _compare(cells, setup, betons, out, jobs):
    runner = Runner(setup, betons, out, max(1, cores() // jobs))
    results = Results(out)
    done = results.done()
    settings, groups = {}, {}
    for cell in dict.fromkeys(cells):
        settings[cell] = runner.settings(cell)
        if (cell, settings[cell]) not in done:
            betons.train(cell)
            groups.setdefault((cell.pretraining, settings[cell].split("-")[0]), []).append(cell)
    waiting, running, failed, again = list(groups.values()), {}, [], set()
    (out / "runs").mkdir(exist_ok=True)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        ["torch", "timm", "sklearn.pipeline", "matplotlib.figure"]
    )  # not numba: LLVM's state does not bear a fork
    stop = []
    old = {s: signal.signal(s, lambda number, frame: stop.append(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    bar = tqdm(
        total=len(settings),
        initial=len(settings) - sum(map(len, waiting)),
        desc="cells",
        unit="cell",
        disable=None,
        dynamic_ncols=True,
    )
    said = False
    try:
        while (waiting and not stop) or running:
            while waiting and len(running) < jobs and not stop:
                group = waiting.pop(0)
                log = out / "runs" / f"{'_'.join(map(str, group[0].pretraining)).replace(os.sep, '_')}.log"
                pipe, theirs = context.Pipe(duplex=False)
                process = context.Process(target=_work, args=(runner, group, log, theirs))
                process.start()
                theirs.close()
                running[pipe] = (process, group, log, Counter())
            for pipe in wait(list(running), timeout=0.5):
                process, group, log, seen = running[pipe]
                try:
                    cell, result, error = pipe.recv()
                except EOFError:
                    process.join()
                    del running[pipe]
                    left = [cell for cell in group if cell not in seen]
                    if left and not stop and "error" not in seen:
                        end = f"signal {-process.exitcode}" if process.exitcode < 0 else f"exit code {process.exitcode}"
                        if left[0] not in again:  # once more, from its last checkpoint
                            again.add(left[0])
                            waiting.append(left)
                            tqdm.write(f"{_name(left[0])} ended by {end}; it is tried once more")
                            continue
                        failed.append(
                            f"{_name(left[0])} ended by {end} (signal 9 is most often want of memory; --jobs 1 needs less); see {log}"
                        )
                    continue
                if error:
                    seen["error"] = 1
                    failed.append(f"{_name(group[0])}: {error}; see {log}")
                    continue
                seen[cell] = 1
                line = {
                    **asdict(cell),
                    "like": setup.like(cell.method),
                    "settings": settings[cell],
                    "recipe": RECIPE,
                    **result,
                    "jobs": jobs,
                    "finished": round(time.time()),
                }
                results.add(line)
                if not said:
                    tqdm.write(_row("cell", "knn20", "linear", "top1", "crops/s"))
                    said = True
                speed = f"{line['crops'] / line['pretrain_seconds']:.0f}" if line["crops"] else "-"
                tqdm.write(
                    _row(
                        _name(cell),
                        *(f"{line[m]:.2f}" if m in line else "-" for m in ("knn20", "linear", "top1")),
                        speed,
                    )
                )
                bar.update()
            if stop:
                for process, *_ in running.values():
                    process.terminate()
                if len(stop) > 1:
                    break
    finally:
        bar.close()
        for process, *_ in running.values():
            process.kill()
        for number, handler in old.items():
            signal.signal(number, handler)
    if stop:
        raise Stopped(
            f"stopped at your wish; {len(results.lines)} cells are in {results.path}. The same command goes on."
        )
    return results.lines, failed


def _name(cell):
    images = f" {cell.images} {cell.sampling}" if cell.images else ""
    target = "" if cell.target == "same" else f" -> {cell.target}"
    return f"{cell.dataset}{images}{target}, {cell.method}, seed {cell.seed}, {cell.budget}+{cell.finetune_budget}"


def _row(name, *values):
    return f"{name:<64}" + "".join(f"{v:>9}" for v in values)
