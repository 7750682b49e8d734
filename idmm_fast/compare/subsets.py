"""The FFCV datasets (`.beton` files) of a sweep, and the subsets that are made of them."""

import functools
from pathlib import Path

import numpy as np

from ..beton.read import Beton
from ..config import ConfigError
from .spec import SAME, RunSpec, SweepConfig, beton_path, digest


@functools.lru_cache
def _open(path: Path, *state: int) -> Beton:
    """`open_beton`, once for each `state` of the file."""
    from ..beton import open_beton

    return open_beton(path)


def open_cached(path: Path) -> Beton:
    """`open_beton`, once as long as the file stays as it is: its fingerprint may mean reading all of it."""
    state = path.stat() if path.exists() else None
    return _open(path, *((state.st_ino, state.st_size, state.st_mtime_ns) if state else ()))


class DatasetFiles:
    """The betons of a data folder, and the subsets of them.

    Args:
        folder: Where the datasets are, see `beton_path`.
        subsets: Where subsets are written.
    """

    def __init__(self, folder: Path | str, subsets: Path | str) -> None:
        self.folder, self.subsets = Path(folder), Path(subsets)

    def path(self, dataset: str, split: str) -> Path:
        """The beton of a dataset's split, "train" or "test"."""
        return beton_path(self.folder, dataset, split)

    def of(self, run: RunSpec) -> tuple[Path, Path, Path]:
        """The training beton of the dataset, that of the target, and the target's test beton."""
        target = run.dataset if run.target == SAME else run.target
        return self.path(run.dataset, "train"), self.path(target, "train"), self.path(target, "test")

    def rows(self, run: RunSpec) -> np.ndarray | None:
        """Which rows of its dataset a run is pretrained on, int64 (images,); None for all.

        Raises:
            ConfigError: The dataset has fewer images.
            FileNotFoundError, BetonError: It is missing or damaged.
        """
        from ..beton.subset import sample_rows

        if not run.images:
            return None
        path = self.path(run.dataset, "train")
        try:
            return sample_rows(open_cached(path).label, run.images, run.sampling == "balanced", run.seed)
        except ValueError as error:
            raise ConfigError(f"{path}: {error}") from None

    def labels(self, run: RunSpec) -> np.ndarray:
        """The labels of what a run is fine-tuned on, int64 (images,), where a fine-tuning takes all.

        Raises:
            ConfigError, FileNotFoundError, BetonError: As `rows` does.
        """
        labels = open_cached(self.of(run)[1]).label
        rows = self.rows(run) if run.target == SAME else None
        return labels if rows is None else labels[rows]

    def finetuned_images(self, run: RunSpec, config: SweepConfig) -> int:
        """How many images a run is fine-tuned on, see `SweepConfig.finetuned_images`."""
        labels = self.labels(run)
        try:
            return config.finetuned_images(labels, run.seed)
        except ConfigError as error:
            raise ConfigError(f"{self.of(run)[1]}, {run}: {error}") from None

    def train(self, run: RunSpec) -> Path:
        """The training beton of a run; a subset is written unless there is one of these rows of these images.

        Raises:
            ConfigError, FileNotFoundError, BetonError: As `rows` and `write_subset` do.
        """
        from ..beton.subset import write_subset

        path, rows = self.path(run.dataset, "train"), self.rows(run)
        if rows is None:
            return path
        mark = digest(open_cached(path).fingerprint, rows.tolist())
        name = path.stem.removesuffix("_train")
        out = self.subsets / f"{name}_{run.images}_{run.sampling}_{run.seed}_{mark}.beton"
        if not out.exists():
            write_subset(path, rows, out)
        return out
