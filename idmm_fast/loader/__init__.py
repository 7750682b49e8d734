"""The loader: from a `.beton` file to batches of augmented, mixed views and their index targets."""

from .draws import Augment
from .loader import IDMM_VIEWS, MultiCropLoader, evaluation_loader
from .operation import Group, LoaderError, Views

__all__ = ["IDMM_VIEWS", "Augment", "Group", "LoaderError", "MultiCropLoader", "Views", "evaluation_loader"]
