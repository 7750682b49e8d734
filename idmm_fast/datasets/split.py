"""What a dataset is to the rest of the project."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np


class DatasetError(Exception):
    """The raw files of a dataset are missing or not what they should be. The message says which and what to do."""


@dataclass(frozen=True)
class Split:
    """One split of a dataset. `images[i]` is a file, its bytes, or uint8 pixels (H, W) or (H, W, 3); `labels[i]` indexes `classes`."""

    images: list[Path | bytes | np.ndarray]
    labels: list[int]
    classes: list[str]

    def __len__(self):
        return len(self.images)
