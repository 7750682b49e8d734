"""The loader of evaluation: every image once, in order, without augmentation."""

from pathlib import Path
from typing import Any

from .cache import ImageCache
from .crops import Augment, Views
from .loader import MultiCropLoader


def evaluation_views(size: int, interpolation: str = "bicubic") -> list[Views]:
    """The one view of evaluation: the shorter side resized to size * 256 / 224, the centre cut out."""
    return [Views(1, size, interpolation=interpolation, resize=round(size * 256 / 224))]


def evaluation_loader(
    path: str | Path,
    batch_size: int,
    size: int,
    num_workers: int = 0,
    rows: Any = None,
    on_error: str = "raise",
    interpolation: str = "bicubic",
    *,
    cache: ImageCache | None = None,
) -> MultiCropLoader:
    """Every image once, in order: the shorter side resized to size * 256 / 224, the centre cut out.

    Yields a list of one Group for each batch. For the arguments see MultiCropLoader and Views.
    """
    views = evaluation_views(size, interpolation)
    options: dict[str, Any] = {"shuffle": False, "rows": rows, "epochs": 1, "on_error": on_error, "cache": cache}
    return MultiCropLoader(path, batch_size, num_workers, 0, 0, views, Augment.none(), **options)
