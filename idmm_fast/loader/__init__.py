"""The loader: from a `.beton` file to batches of augmented, mixed views and their index targets."""

from .decoder import Group, LoaderError, Views
from .loader import IDMM_VIEWS, MultiCropLoader, evaluation_loader
from .sampling import Augment

__all__ = ["IDMM_VIEWS", "Augment", "Group", "LoaderError", "MultiCropLoader", "Views", "evaluation_loader"]
