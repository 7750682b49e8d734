"""Writing a beton: encoded in threads, written in order to a temporary name, renamed when complete.

FFCV's own writer forks processes, hangs when one of them fails, and leaves an unfinished file under the final name.
Here the same input and options give the same bytes, whatever the number of workers.
"""

import contextlib
import errno
import json
import shutil
import sys
from collections import deque
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm import tqdm

from .. import __version__
from ..datasets.image_files import LeftOut
from ..errors import WriteError
from ..files import replacing, sha256, sync
from ..limits import cores
from ..lock import Lock
from .account import make_account
from .encode import Encoded, choose_mode, describe, encode
from .format import DEFAULT_PAGE, MAX_PAGE
from .pages import Pages, PageTooSmall
from .pixels import reason_of

if TYPE_CHECKING:
    from ..datasets import Split

__all__ = ["ConversionResult", "WriteError", "WriteOptions", "sidecar_path", "write_beton"]

_PASSING = (errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM)  # errors that say nothing of the file
IMAGES_PER_TASK = 8  # that a thread is given at once: handing them over one by one costs as much as storing them


@dataclass(frozen=True)
class WriteOptions:
    """How a split is converted.

    Attributes:
        mode: "jpg", "raw", or "auto": raw when all pixels fit an eighth of the machine's memory.
        max_resolution: larger images are shrunk to this longer side, pixels; None: never.
        quality: 1..100, of JPEGs that have to be encoded.
        workers: threads; 0: one a core.
        seed: of the order of the rows; None: the order of the split.
        on_error: "skip" lists an image that can't be read and continues, "fail" stops.
        quiet: no progress bar.
        splits: images of each split of the dataset, for the sidecar; {}: this split's alone.
        should_stop: called after each image; when it returns true, the conversion ends in KeyboardInterrupt.
    """

    mode: str = "auto"
    max_resolution: int | None = None
    quality: int = 90
    workers: int = 0
    seed: int | None = 0
    on_error: str = "skip"
    quiet: bool = False
    splits: Mapping[str, int] = field(default_factory=dict)
    should_stop: Callable[[], bool] = lambda: False


@dataclass
class ConversionResult:
    """What a conversion made.

    Attributes:
        path: the beton.
        sidecar: its JSON.
        count: of images in it.
        mode: "jpg" or "raw".
        skipped: images that could not be read, {"file", "reason"} each.
        places: for each row, which image of the split it is.
        account: images of each class, what was left out and why; see account.make_account.
    """

    path: Path
    sidecar: Path
    count: int
    mode: str
    skipped: list[dict[str, str]] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    account: dict[str, Any] = field(default_factory=dict)


def sidecar_path(path: str | Path) -> Path:
    """`flowers_train.beton` -> `flowers_train.json`."""
    return Path(path).with_suffix(".json")


def _encoded(
    images: Sequence[Any], order: np.ndarray, workers: int, mode: str, options: WriteOptions
) -> Generator[tuple[int, Encoded | Exception], None, None]:
    """(place, Encoded or the exception) in the order given, some images a worker ahead of the consumer."""

    def convert(source: Any) -> Encoded | Exception:
        try:
            image = encode(source, mode, options.max_resolution, options.quality)
            image.sum  # noqa: B018  made here, in the threads
            return image
        except Exception as error:  # PIL raises many kinds for damaged files; each becomes a listed skip
            if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _PASSING):
                raise WriteError(f"{describe(source)} could not be read this time: {error}. Run it again.") from error
            return error

    def work(places: np.ndarray) -> list[tuple[int, Encoded | Exception]]:
        return [(place, convert(images[place])) for place in places]

    most = workers if mode == "raw" else 4 * workers  # tasks; the pixels of a photograph may be 36 MB
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[Future] = deque()
        try:
            for first in range(0, len(order), IMAGES_PER_TASK):
                ahead.append(pool.submit(work, order[first : first + IMAGES_PER_TASK]))
                if len(ahead) > most:
                    yield from ahead.popleft().result()
            while ahead:
                yield from ahead.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _write_images(
    pages: Pages, split: "Split", encoded: Iterable[tuple[int, Encoded | Exception]], options: WriteOptions, bar: tqdm
) -> tuple[list[int], list[dict[str, str]], LeftOut]:
    """All images. Returns (the places of the rows in the split, skipped, what was changed)."""
    skipped: list[dict[str, str]] = []
    places, changed = [], LeftOut()
    for place, image in encoded:
        bar.update()
        if options.should_stop():
            raise KeyboardInterrupt
        if isinstance(image, Exception):
            name, reason = describe(split.images[place]), reason_of(image)
            if options.on_error == "fail":
                raise WriteError(f"{name} can't be converted: {reason}. Mend or remove it, or use --on-error skip.")
            skipped.append({"file": name, "reason": reason})
            continue
        pages.add(image, split.labels[place])
        places.append(int(place))
        if image.change:
            changed.add(image.change, describe(split.images[place]))
    if not places:
        raise WriteError(
            "none of the images could be converted; "
            + (f"first: {skipped[0]['file']}: {skipped[0]['reason']}" if skipped else "there are none")
        )
    return places, skipped, changed


def _write_file(
    path: Path, desc: str, split: "Split", mode: str, options: WriteOptions
) -> tuple[list[int], list[dict[str, str]], LeftOut, int]:
    """The whole file. Returns what `_write_images` does, and the checksum of the tables."""
    order = np.arange(len(split))
    if options.seed is not None:
        order = np.random.default_rng(options.seed).permutation(len(split))
    page_size = DEFAULT_PAGE
    while True:
        with (
            contextlib.closing(_encoded(split.images, order, options.workers or cores(), mode, options)) as encoded,
            open(path, "w+b") as file,
            tqdm(total=len(split), desc=desc, unit="img", disable=options.quiet or None, leave=False) as bar,
            ThreadPoolExecutor(1) as helper,  # left before the file is closed
        ):
            pages = Pages(file, len(order), page_size, helper)
            try:
                return *_write_images(pages, split, encoded, options, bar), pages.finish()
            except PageTooSmall as small:  # rare: begin again with pages that hold the largest image so far
                while page_size < small.args[0]:
                    page_size *= 2
                if page_size > MAX_PAGE:
                    raise WriteError(
                        "an image of over 2 GB does not fit a beton; use --max-resolution or --mode jpg"
                    ) from None


def _digest(path: Path) -> str:
    """The SHA-256 of the file, which is sent to the disk meanwhile."""
    with ThreadPoolExecutor(1) as helper:
        synced = helper.submit(sync, path)
        digest = sha256(path)
        synced.result()
    return digest


def _is_sidecar(path: Path) -> bool:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return False
    return isinstance(content, dict) and "dataset" in content


def write_beton(path: str | Path, split: "Split", *, dataset: str, name: str, **options: Any) -> ConversionResult:
    """Convert a split to an FFCV file and its sidecar. Both are written whole or not at all.

    Args:
        path: the beton; its folder is made if it is not there.
        split: images, labels and classes, see datasets.Split.
        dataset: its name, for the sidecar.
        name: of the split, for the sidecar and messages.
        options: the fields of WriteOptions.

    Raises:
        WriteError: nothing could be converted or written; with on_error="fail", an image could not be read; a file
            that is no sidecar has the sidecar's name.
        Locked: another process writes the file.
        KeyboardInterrupt: `should_stop` said so.
    """
    path, chosen = Path(path), WriteOptions(**options)
    if len(split) == 0:
        raise WriteError(f"the {name} split is empty; nothing to convert")
    sidecar, temporary = sidecar_path(path), path.with_name(path.name + ".tmp")
    if not path.exists() and sidecar.exists() and not _is_sidecar(sidecar):
        raise WriteError(f"{sidecar} is not of a conversion, and would be written over; rename it")
    mode = choose_mode(split.images, chosen.max_resolution) if chosen.mode == "auto" else chosen.mode
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = Lock(path.with_name(path.name + ".lock"), str(path))
    except OSError as error:
        raise WriteError(f"{path.parent} can't be written: {error.strerror or error}") from error
    if temporary.exists():
        tqdm.write(f"{temporary}: left by a conversion that was interrupted; beginning anew", file=sys.stderr)
    try:
        with lock:
            # The beton is renamed first. In between the tables' checksum tells that the sidecar is of another file.
            with replacing(sidecar, unique=False) as draft, replacing(path, unique=False) as temporary:
                places, skipped, changed, tables = _write_file(temporary, path.name, split, mode, chosen)
                account = make_account(split, places, skipped, changed.listing())
                account["splits"] = dict(chosen.splits) or {name: len(split)}
                content = {
                    "dataset": dataset,
                    "split": name,
                    "count": len(places),
                    "classes": split.classes,
                    "mode": mode,
                    "max_resolution": chosen.max_resolution,
                    "quality": chosen.quality,
                    "order_seed": chosen.seed,
                    "skipped": skipped,
                    "account": account,
                    "written": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                    "versions": {"idmm-fast": __version__} | {p: version(p) for p in ("ffcv", "pillow", "numpy")},
                    "tables_sum": tables,
                    "sha256": _digest(temporary),
                }
                draft.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
            sync(path.parent)  # the renamings are on the disk too, before another process may write
    except OSError as error:
        free = shutil.disk_usage(path.parent).free >> 20
        raise WriteError(
            f"{temporary} could not be written: {error.strerror or error} ({free} MB are free there)"
        ) from error
    return ConversionResult(path, sidecar, len(places), mode, skipped, places, account)
