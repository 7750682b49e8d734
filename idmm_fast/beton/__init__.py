"""The `.beton` file: FFCV's format, written safely and checked before it is read."""

from .account import account_lines, printable
from .read import Beton, BetonError, open_beton
from .write import ConversionResult, WriteError, WriteOptions, sidecar_path, write_beton

__all__ = [
    "Beton",
    "BetonError",
    "ConversionResult",
    "WriteError",
    "WriteOptions",
    "account_lines",
    "open_beton",
    "printable",
    "sidecar_path",
    "write_beton",
]
