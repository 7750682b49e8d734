"""The runs of one pretraining, in one process: pretrain, evaluate the frozen features, fine-tune."""

import json
import os
import resource
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from ..config import load_config
from ..config.pretrain import SCHEMA as PRETRAIN
from ..errors import Stopped
from ..files import load_or_compute
from .spec import RANDOM, SAME, Config, RunSpec, SweepConfig
from .store import Record, settings_digest
from .subsets import DatasetFiles

OnResult = Callable[[RunSpec, Record], None]
OnFailure = Callable[[RunSpec, Exception], None]


class Runner:
    """Runs what shares a pretraining, one run after another.

    Args:
        config: The sweep file.
        files: The betons.
        folder: Where the run folders are made.
        threads: How many threads torch and the loader take.
    """

    def __init__(self, config: SweepConfig, files: DatasetFiles, folder: Path | str, threads: int) -> None:
        self.config, self.files, self.folder, self.threads = config, files, Path(folder), threads

    def name(self, run: RunSpec) -> str:
        """What a message calls one of `runs`."""
        return str(run)

    def log(self, run: RunSpec) -> Path:
        """What the process of a pretraining writes to."""
        return self.folder / f"{'_'.join(map(str, run.pretrain_key)).replace(os.sep, '_')}.log"

    def run(self, runs: list[RunSpec], on_result: OnResult, on_failure: OnFailure) -> None:
        """Pretrain once, then evaluate and fine-tune for each of `runs`, whose results are told one by one.

        What fails in one of `runs` is told too, and the others go on; what fails in the pretraining is raised.
        """
        import torch

        from ..beton import open_beton

        torch.set_num_threads(self.threads)
        first = runs[0]
        train = self.files.train(first)
        home = self._home(first)
        images = len(open_beton(train))
        cost = {"pretraining_images": images} | self._pretrain(first, train, images, home / "pretrain")
        init = None if first.method == RANDOM else home / "pretrain" / "backbone.safetensors"
        frozen: dict[str, Record] = {}
        for run in runs:
            _, target, test = self.files.of(run)
            betons = (train if run.target == SAME else target, test)
            try:
                finetuned, cfg = self._finetune(run, betons, init, home)
                if run.target not in frozen:
                    frozen[run.target] = self._evaluate(cfg, betons, init)
            except Stopped:
                raise
            except Exception as error:
                on_failure(run, error)
            else:
                on_result(run, {**cost, **frozen[run.target], **finetuned})

    def _home(self, run: RunSpec) -> Path:
        """The folder of a pretraining and of all that starts from it."""
        pretrain, _, *rows = settings_digest(run, self.config, self.files).split("-")
        data = f"{Path(run.dataset).name}_{run.images or 'all'}_{run.sampling}"
        return self.folder / data / "_".join([run.method, str(run.seed), pretrain, *rows])

    def _threaded(self, cfg: Config) -> Config:
        """`cfg` with this runner's number of loader threads, unless it names one."""
        cfg.data.num_workers = cfg.data.num_workers or self.threads
        return cfg

    def _pretrain(self, run: RunSpec, train: Path, images: int, folder: Path) -> Record:
        """What a pretraining cost ("crops", "epochs", "pretrain_seconds", "peak_mb"), kept beside the finished run."""
        from ..train.pretraining import pretrain

        cfg = self.config.pretrain_config(run, train, images, folder)
        if cfg is None:
            return {"crops": 0, "epochs": 0, "pretrain_seconds": 0.0, "peak_mb": None}

        def measure() -> Record:
            with _stopwatch(folder) as seconds:
                pretrain(self._threaded(cfg))
            used = load_config(PRETRAIN, folder / "config.yaml", {}, ()).training  # a number where cfg has auto
            steps = len((folder / "metrics.jsonl").read_text().splitlines())
            epochs = steps // -(-images // (used.batch_size * used.accumulate))
            return {
                "crops": epochs * images * sum(group["count"] for group in cfg.crops.groups),
                "epochs": epochs,
                "pretrain_seconds": round(seconds(), 1),
                "peak_mb": _peak_mb(),
            }

        cost = load_or_compute(folder / "cost.json", measure)
        _tidy(folder)
        return cost

    def _finetune(
        self, run: RunSpec, betons: tuple[Path, Path], init: Path | None, home: Path
    ) -> tuple[Record, Config]:
        """What a fine-tuning found, kept beside the finished run, and its configuration."""
        from ..beton import open_beton
        from ..train.finetuning import finetune

        settings = settings_digest(run, self.config, self.files).split("-")[1]
        folder = home / f"finetune_{Path(run.target).name}_{run.finetune_budget}_{settings}"
        images = self.config.finetuned_images(open_beton(betons[0]).label, run.seed)
        cfg = self._threaded(self.config.finetune_config(run, betons, images, init, folder))

        def measure() -> Record:
            with _stopwatch(folder) as seconds:
                result = finetune(cfg)
            metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
            return {
                "top1": result["top1"],
                "top5": result["top5"],
                "labels": result["train_images"],
                "curve": [[entry["epoch"] + 1, entry["top1"]] for entry in metrics if "top1" in entry],
                "finetune_seconds": round(seconds(), 1),
                "finetune_epochs": cfg.training.epochs,
                "parameters": _count_parameters(cfg),
            }

        found = load_or_compute(folder / "found.json", measure)
        _tidy(folder, "model.safetensors")
        return found, cfg

    def _evaluate(self, finetune: Config, betons: tuple[Path, Path], init: Path | None) -> Record:
        """kNN and linear accuracy of the frozen features, and at how many pixels."""
        from ..evaluate.frozen import evaluate_frozen

        cfg = self.config.evaluate_config(finetune, betons, init)
        return evaluate_frozen(cfg) | {"evaluated_at": cfg.model.image_size}


def _stopwatch(folder: Path) -> AbstractContextManager[Callable[[], float]]:
    """A stopwatch for the training in a run folder, which goes on from the calls that left it a checkpoint."""
    from ..train import checkpoint
    from ..train.stopwatch import stopwatch

    resumes = bool(checkpoint.listing(folder / "checkpoints"))
    return stopwatch(folder / "seconds.json", folder, resumes=resumes)


def _count_parameters(cfg: Config) -> int:
    """The parameters of the backbone of a fine-tuning, without the classifier."""
    from ..models import create_backbone

    backbone = create_backbone(cfg.model.name, cfg.model.image_size, cfg.model.drop_path, cfg.model.options)
    return sum(parameter.numel() for parameter in backbone.parameters())


def _peak_mb() -> int:
    """The peak memory of this process: of the GPU, where it uses one."""
    import torch

    if torch.cuda.is_available() and torch.cuda.is_initialized():
        return round(torch.cuda.max_memory_allocated() / 2**20)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)


def _tidy(folder: Path, *files: str) -> None:
    """Remove what a finished run no longer needs."""
    for name in ("checkpoints", "events"):
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in files:
        (folder / name).unlink(missing_ok=True)
