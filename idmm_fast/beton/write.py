"""Writing a beton: encoded in threads, written in order to a temporary name, renamed when complete.

FFCV's own writer forks processes, hangs for ever when one of them fails, and leaves an unfinished file under the final
name. Here the same input and options give the same bytes, whatever the number of workers.
"""

import json
import os
import shutil
import sys
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..errors import WriteError
from ..files import sha256
from ..limits import cores, memory_bytes
from ..lock import Lock
from .checksum import tables_sum
from .encode import describe, encode, stored_size
from .format import ALLOCATION, DEFAULT_PAGE, HEADER, MAX_PAGE, SAMPLE, SUMS_MARK, VERSION, fields, sums_start

_TOGETHER = 8  # images that a thread is given at once: handing them over one by one costs as much as storing them
RAW_SHARE = 0.125  # mode auto stores pixels when they fit this share of the machine's memory


class _PageTooSmall(Exception):
    pass


@dataclass
class ConversionResult:
    """What a conversion made: the file, its sidecar, how many images it holds, which were skipped and why, and which image
    of the split each row is (places)."""

    path: Path
    sidecar: Path
    count: int
    mode: str
    skipped: list[dict] = field(default_factory=list)
    places: list[int] = field(default_factory=list)


def sidecar_path(path):
    """`flowers_train.beton` -> `flowers_train.json`."""
    return Path(path).with_suffix(".json")


def _choose_mode(images, max_resolution):
    most, total = RAW_SHARE * memory_bytes(), 0
    for source in images:
        try:
            height, width = stored_size(source, max_resolution)
        except (OSError, ValueError, SyntaxError):
            continue  # a bad image is reported when it is converted
        total += height * width * 3
        if total > most:
            return "jpg"
    return "raw"


def _encoded(images, order, workers, mode, max_resolution, quality):
    """(place, Encoded or the exception) in the order given, at most a few images a worker ahead of the consumer."""

    def convert(source):
        try:
            image = encode(source, mode, max_resolution, quality)
            image.sum  # noqa: B018  made here, in the threads
            return image
        except Exception as error:  # PIL raises many kinds for damaged files; each becomes a listed skip
            return error

    def work(places):
        return [(place, convert(images[place])) for place in places]

    with ThreadPoolExecutor(workers) as pool:
        ahead = deque()
        try:
            for first in range(0, len(order), _TOGETHER):
                ahead.append(pool.submit(work, order[first : first + _TOGETHER]))
                if len(ahead) > 4 * workers:
                    yield from ahead.popleft().result()
            while ahead:
                yield from ahead.popleft().result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _write(file, split, order, encoded, page_size, on_error, progress, helper, stopped):
    """The whole file, header last. Returns (the places of the rows in the split, skipped, the sum over the tables). Full pages go to the disk
    while the next ones are made, in the thread of `helper`."""
    flushed = helper.submit(int)
    samples = np.zeros(len(order), SAMPLE)
    sums = np.zeros(len(order), np.uint64)
    allocations = np.zeros(len(order), ALLOCATION)
    descriptions = fields()
    start = HEADER.itemsize + descriptions.nbytes
    position = -(-(sums_start(start + samples.nbytes) + 16 + sums.nbytes) // page_size) * page_size
    file.seek(position)
    left = page_size
    count, skipped, places = 0, [], []
    for place, image in encoded:
        progress.update()
        if stopped():
            raise KeyboardInterrupt
        if isinstance(image, Exception):
            reason = str(image) or type(image).__name__
            reason = (
                "it is not an image that PIL can read" if reason.startswith("cannot identify image file") else reason
            )
            if on_error == "fail":
                raise WriteError(
                    f"{describe(split.images[place])} can't be converted: {reason}. Mend or remove it, or use --on-error skip."
                )
            skipped.append({"file": describe(split.images[place]), "reason": reason})
            continue
        size = len(image.data)
        if size > page_size:
            raise _PageTooSmall(size)
        if size > left:  # a sample never crosses the end of a page
            position += left
            left = page_size
            if flushed.done():
                file.flush()
                flushed = helper.submit(os.fdatasync, file.fileno())
            file.seek(position)
        file.write(image.data)
        samples[count]["f0"] = (image.mode, image.width, image.height, position)
        samples[count]["f1"] = split.labels[place]
        allocations[count] = (count, position, size)
        sums[count] = image.sum
        places.append(int(place))
        position, left, count = position + size, left - size, count + 1
    if not count:
        raise WriteError(
            "none of the images could be converted; "
            + (f"first: {skipped[0]['file']}: {skipped[0]['reason']}" if skipped else "there are none")
        )
    table = position + left
    file.seek(table)
    file.write(allocations[:count].tobytes())
    header = np.zeros(1, HEADER)
    header[0] = (VERSION, len(descriptions), page_size, count, table)
    tables = header.tobytes() + descriptions.tobytes() + samples[:count].tobytes()
    tables += bytes(sums_start(len(tables)) - len(tables))
    over_all = tables_sum(tables, sums[:count], allocations[:count])
    file.seek(0)
    file.write(tables + np.array([SUMS_MARK, over_all], np.uint64).tobytes() + sums[:count].tobytes())
    flushed.result()
    return places, skipped, int(over_all)


def _sync(path):
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_beton(
    path,
    split,
    *,
    dataset,
    name,
    mode="auto",
    max_resolution=None,
    quality=90,
    workers=0,
    seed=0,
    on_error="skip",
    quiet=False,
    stopped=lambda: False,
):
    """Convert `split` (datasets.Split) to the FFCV file `path` and its sidecar. Returns Written; raises WriteError, and Locked while another process
    writes it.

    mode: "jpg", "raw" or "auto" (raw when all pixels fit an eighth of the machine's memory). max_resolution: longer
    side in pixels, larger images are shrunk. quality: of JPEGs that have to be encoded. workers: threads, 0 for one a
    core. seed: of the order of the rows. on_error: "skip" lists an image that can't be read and goes on, "fail" stops.
    stopped: asked after each image; when it says so, the conversion ends in KeyboardInterrupt.
    """
    path = Path(path)
    if len(split) == 0:
        raise WriteError(f"the {name} split is empty; nothing to convert")
    workers = workers or cores()
    order = np.arange(len(split)) if seed is None else np.random.default_rng(seed).permutation(len(split))
    if mode == "auto":
        mode = _choose_mode(split.images, max_resolution)
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = Lock(path.with_name(path.name + ".lock"), str(path))
    except OSError as error:
        raise WriteError(f"{path.parent} can't be written: {error.strerror or error}") from error
    if temporary.exists():
        tqdm.write(f"{temporary}: left by a conversion that was interrupted; beginning anew", file=sys.stderr)
    page_size = DEFAULT_PAGE
    try:
        while True:
            encoded = _encoded(split.images, order, workers, mode, max_resolution, quality)
            with (
                open(temporary, "wb") as file,
                tqdm(total=len(split), desc=path.name, unit="img", disable=quiet or None, leave=False) as bar,
                ThreadPoolExecutor(1) as helper,  # left before the file is closed
            ):
                try:
                    places, skipped, tables = _write(
                        file, split, order, encoded, page_size, on_error, bar, helper, stopped
                    )
                    break
                except _PageTooSmall as small:  # rare: begin again with pages that hold the largest image so far
                    while page_size < small.args[0]:
                        page_size *= 2
                    if page_size > MAX_PAGE:
                        raise WriteError(
                            "an image of over 2 GB does not fit a beton; use --max-resolution or --mode jpg"
                        ) from None
                finally:
                    encoded.close()
        with ThreadPoolExecutor(1) as helper:
            synced = helper.submit(_sync, temporary)
            digest = sha256(temporary)
            synced.result()
        content = {
            "dataset": dataset,
            "split": name,
            "count": len(places),
            "classes": split.classes,
            "mode": mode,
            "max_resolution": max_resolution,
            "quality": quality,
            "order_seed": seed,
            "skipped": skipped,
            "written": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "versions": {p: version(p) for p in ("idmm-fast", "ffcv", "pillow", "numpy")},
            "tables_sum": tables,
            "sha256": digest,
        }
        sidecar = sidecar_path(path)
        draft = sidecar.with_name(sidecar.name + ".tmp")
        draft.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        os.replace(temporary, path)
        os.replace(
            draft, sidecar
        )  # a reader of the moment between sees by tables_sum that the old one is of another file
        _sync(path.parent)
    except OSError as error:
        free = shutil.disk_usage(path.parent).free >> 20
        raise WriteError(
            f"{temporary} could not be written: {error.strerror or error} ({free} MB are free there)"
        ) from error
    finally:
        temporary.unlink(missing_ok=True)
        lock.close()
    return ConversionResult(path, sidecar, len(places), mode, skipped, places)
