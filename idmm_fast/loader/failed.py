"""Images that can't be decoded: refused, replaced or left out, and counted when their batch is handed out."""

import warnings
from pathlib import Path

import numpy as np

from ..beton.jpeg import MESSAGES
from ..errors import LoaderError

Found = dict[int, tuple[int, str]]  # the images of a batch that failed: {row: (the row instead of it, -1: none; why)}


class FailedImages:
    """What is done about images that can't be decoded.

    Args:
        path: the beton, for messages.
        rows: those that the loader reads; a replacement is one of them.
        on_error: "raise"; "replace" an image by the next row's; "skip" it.

    Attributes:
        replaced: {row: (the row that replaces it, why)}, of the batches handed out.
        skipped: {row: why}, likewise.
    """

    def __init__(self, path: Path, rows: np.ndarray, on_error: str) -> None:
        self.on_error = on_error
        self.replaced: dict[int, tuple[int, str]] = {}
        self.skipped: dict[int, str] = {}
        self._path, self._rows = path, np.sort(rows)
        self._distinct = 1 + np.count_nonzero(np.diff(self._rows))  # one may come twice

    def handle(self, rows: np.ndarray, place: int, code: int, found: Found) -> int:
        """Change a batch where an image failed; in a thread.

        Args:
            rows: int64 (B,), of the batch; the failed one becomes its replacement, or -1 if it is skipped.
            place: of the failed image in the batch.
            code: of beton.jpeg, why it failed.
            found: of the batch; the image is added.

        Returns:
            The place at which to continue.

        Raises:
            LoaderError: with on_error="raise", or when no row can be decoded.
        """
        row = int(rows[place])
        if self.on_error == "raise":
            raise LoaderError(
                f"{self._reason(row, MESSAGES[code])}. Convert the dataset again with idmm-fast convert, or use "
                f"on_error='replace', in evaluation 'skip'."
            )
        if self.on_error == "skip":
            rows[place] = -1
            found[row] = -1, MESSAGES[code]
            return place + 1
        rows[place] = other = int(self._rows[np.searchsorted(self._rows, row, side="right") % self._rows.size])
        found[row] = other, MESSAGES[code]
        if len(found) == self._distinct:
            raise LoaderError(
                f"no row of {self._path} can be decoded; convert the dataset again with idmm-fast convert"
            )
        return place

    def count(self, found: Found) -> None:
        """Count the failed images of a batch that is handed out, and warn of those that are new."""
        for row, (other, why) in sorted(found.items()):
            if other < 0 and row not in self.skipped:
                self.skipped[row] = why
                warnings.warn(
                    f"{self._reason(row, why)}; it is left out ({len(self.skipped)} skipped so far)", stacklevel=2
                )
            elif other >= 0 and row not in self.replaced:
                self.replaced[row] = other, why
                warnings.warn(
                    f"{self._reason(row, why)}; row {other} replaces it ({len(self.replaced)} replaced so far)",
                    stacklevel=2,
                )

    def _reason(self, row: int, why: str) -> str:
        return f"row {row} of {self._path} can't be decoded: {why}"


def as_loader_error(error: BaseException) -> LoaderError:
    """What the consumer gets for an error in a thread."""
    if isinstance(error, LoaderError):
        return error
    result = LoaderError(f"the loader's thread failed: {type(error).__name__}: {error}")
    result.__cause__ = error
    return result
