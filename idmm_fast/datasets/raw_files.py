"""Where a dataset's raw files are: as upstream lays them out, as mirrors do, in archives, or still to be downloaded."""

import hashlib
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from .fetch import download, unpack
from .folder import load as load_folder
from .image_files import is_hidden
from .split import DatasetError, Source


def writable_root(source: Source, root: Path, unpack_to: Path | None) -> Path:
    """A folder of raw files in which archives can be unpacked.

    Args:
        source: The dataset's.
        root: Where its raw files are, or are downloaded to.
        unpack_to: The folder UNPACK_TO-KEY takes the place of `root` where that can't be written; None: none does.

    Returns:
        `root`; or UNPACK_TO-KEY, with a link to whatever `root` holds that is finished. The key is that of `root`, so
        that what was unpacked from another folder is not read in its place.

    Raises:
        OSError: UNPACK_TO-KEY can't be written.
    """
    archives = any((root / name).is_file() for name in source.files if _is_archive(name))
    complete = not archives and find_folder(source, root) is not None
    if unpack_to is None or unpack_to.resolve() == root.resolve() or complete or _writable(root):
        return root
    beside = unpack_to.with_name(f"{unpack_to.name}-{_key(root)}")
    print(f"{root} can't be written, so what is unpacked or downloaded goes to {beside}", file=sys.stderr)
    beside.mkdir(parents=True, exist_ok=True)
    finished = {
        entry.name: entry.resolve()
        for entry in (root.iterdir() if root.is_dir() else [])
        if not is_hidden(entry.name) and not entry.name.endswith((".part", ".unpacking"))
    }
    for old in beside.iterdir():  # those that are right stay: another process may read through them
        if old.is_symlink() and Path(os.readlink(old)) != finished.get(old.name):
            old.unlink(missing_ok=True)
    for name, target in finished.items():
        with suppress(FileExistsError):
            (beside / name).symlink_to(target)
    return beside


def _key(root: Path) -> str:
    """Eight hex digits of where a folder is and of the names, sizes and times of the archives in it."""
    names = sorted(os.listdir(root)) if root.is_dir() else []
    archives = [root / name for name in names if _is_archive(name) and (root / name).is_file()]
    stats = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in archives]
    return hashlib.sha256(repr((str(root.resolve()), stats)).encode()).hexdigest()[:8]


def _writable(folder: Path) -> bool:
    """Whether files can be made in a folder, or in the nearest one above it that exists."""
    folder = folder.absolute()
    return os.access(next(f for f in (folder, *folder.parents) if f.exists()), os.W_OK)


def locate(source: Source, root: Path) -> Path:
    """The folder of a dataset's raw files; unpacks or downloads them if need be.

    Args:
        source: The dataset's.
        root: The folder, one above it, or that of the archives; where downloads go.

    Returns:
        `root` or a folder below it, for `Source.at`.

    Raises:
        DatasetError: The files are not there and can't be fetched, or lie in folders of classes.
    """
    folder = find_folder(source, root)
    if folder is None:
        if not any(_is_archive(name) and (root / name).is_file() for name in source.files):
            _refuse_class_folders(source, root)
        _unpack_all(root, source.files)
        folder = find_folder(source, root)
    if folder is None and source.files:
        _unpack_all(root, _download_all(source, root))
        folder = find_folder(source, root)
    if folder is None:
        advice = f"The files are {', '.join(source.files)} from" if source.files else "See"
        raise DatasetError(f"{_what_is_there(source, root)}. {advice} {source.address}.")
    return folder


def find_folder(source: Source, root: Path) -> Path | None:
    """The folder that holds all markers; `root` itself where a mirror has them in several folders below it."""
    whole = next((root / f for f in source.folders if all((root / f / m).exists() for m in source.markers)), None)
    if whole is None and all(source.at(root, marker).exists() for marker in source.markers):
        return root
    return whole


def _missing(source: Source, root: Path) -> list[str]:
    return [marker for marker in source.markers if not source.at(root, marker).exists()]


def _what_is_there(source: Source, root: Path) -> str:
    """What `root` holds, and what of the raw files it does not, in words."""
    missing = ", ".join(_missing(source, root))
    there = _others(source, root)
    if not there:
        return f"The raw files are not under {root} ({missing})"
    return f"{root} holds {', '.join(there[:5])}{', ...' if len(there) > 5 else ''}, but not {missing}"


def _others(source: Source, root: Path) -> list[str]:
    """What is in `root` beside the files that are downloaded to it."""
    own = {*source.files, *(f"{name}.part" for name in source.files)}
    names = sorted(os.listdir(root)) if root.is_dir() else []
    return [name for name in names if name not in own and not is_hidden(name)]


def _refuse_class_folders(source: Source, root: Path) -> None:
    """Say so where a mirror has the images in folders of classes, which upstream's lists do not name."""
    if not _others(source, root) or source.files.keys() >= set(_missing(source, root)):  # a download gives the lists
        return
    try:
        splits = load_folder(root)
    except (DatasetError, OSError):
        return
    classes = next(iter(splits.values())).classes
    if 2 * len(classes) < source.classes:
        return
    share = "" if "test" in splits else " --test-share 0.2"
    raise DatasetError(
        f"{_what_is_there(source, root)}. Its images lie in {len(classes)} folders of classes ({classes[0]}, "
        f"{classes[1]}, ...): convert them with --ds folder --root {root}{share}. For the official splits get "
        f"{', '.join(source.files)} from {source.address}, and name their folder with --root."
    )


def _unpack_all(root: Path, names: Iterable[str]) -> None:
    for name in names:
        if (root / name).is_file() and _is_archive(name):
            unpack(root / name, root)


def _download_all(source: Source, root: Path) -> list[str]:
    """Download the files that are not there yet; say before what is missing where there is something.

    Returns:
        Their names. Archives are not among them where all that is missing are files beside them.
    """
    found, missing = _what_is_there(source, root), _missing(source, root)
    wanted = {
        name: file
        for name, file in source.files.items()
        if not (root / name).exists() and (name in missing or not source.files.keys() >= set(missing))
    }
    try:
        if any(url is None for url, _ in wanted.values()):
            raise OSError("it can't be downloaded without you")
        if wanted and _others(source, root):
            print(f"{found}; downloading {', '.join(wanted)} to it ({source.size} in all)", file=sys.stderr)
        for name, (url, checksum) in wanted.items():
            assert url is not None
            download(url, root / name, checksum)
    except OSError as error:
        reason = getattr(error, "reason", error)
        raise DatasetError(
            f"{found}, and could not be fetched ({reason}). "
            f"Get {', '.join(source.files)} from {source.address}, put them into {root} as they are "
            f"(or the unpacked files: {', '.join(source.markers)}), and run the command again; "
            f"or name the folder that holds them with --root."
        ) from None
    return list(wanted)


def _is_archive(name: str) -> bool:
    return name.endswith((".tar", ".tgz", ".tar.gz", ".zip"))
