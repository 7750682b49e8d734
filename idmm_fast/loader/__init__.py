"""The loader: from a `.beton` file to batches of augmented, mixed crops and their index targets."""

from ..errors import LoaderError
from .cache import ImageCache, open_cache
from .crops import IDMM_VIEWS, Augment, Group, Views
from .evaluation import evaluation_loader
from .loader import MultiCropLoader

__all__ = [
    "IDMM_VIEWS",
    "Augment",
    "Group",
    "ImageCache",
    "LoaderError",
    "MultiCropLoader",
    "Views",
    "evaluation_loader",
    "open_cache",
]
