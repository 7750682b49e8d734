"""Bringing raw files here: downloads that go on where they stopped and are checked, archives unpacked safely."""

import hashlib
import shutil
import tarfile
import urllib.error
import urllib.request
import zipfile
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from .split import DatasetError

_BLOCK = 1 << 20
_TIMEOUT = 30  # seconds without a byte
_GROWTH = 20  # an archive of photographs hardly shrinks them; one that unpacks to more than this many times its size is a trap


def md5(path):
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def download(url, path, checksum=None):
    """Fetch `url` to `path`, going on with path.part if a download was interrupted; `checksum` is its MD5.

    Raises OSError (no network, server error) or DatasetError (not what was published); path.part is kept for the next try.
    """
    path = Path(path)
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    done = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(
        url, headers={"User-Agent": "idmm-fast"} | ({"Range": f"bytes={done}-"} if done else {})
    )
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # the part is whole already
            raise
        response = None
    if response is not None:
        with response:
            if done and response.status != 206:  # a server that can't go on begins anew
                done = 0
            length = response.headers.get("Content-Length")
            total = done + int(length) if length else None
            with (
                open(part, "ab" if done else "wb") as file,
                tqdm(total=total, initial=done, desc=path.name, unit="B", unit_scale=True, disable=None) as bar,
            ):
                while block := response.read(_BLOCK):
                    file.write(block)
                    bar.update(len(block))
            if total is not None and part.stat().st_size < total:
                raise OSError(
                    f"the connection ended after {part.stat().st_size} of {total} bytes; run the command again to go on"
                )
    if checksum and md5(part) != checksum:
        part.unlink()
        raise DatasetError(
            f"{url} is not the file that was published (its MD5 differs); it was deleted. Try again, or fetch it by hand."
        )
    part.replace(path)


def _check(name, target):
    """Refuse a name that leads out of the target folder."""
    pure = PurePosixPath(name.replace("\\", "/"))
    if pure.is_absolute() or ".." in pure.parts:
        raise DatasetError(f"'{name}' leads out of {target}")


def unpack(archive, target):
    """Unpack a tar (any compression) or zip into `target`: no path or link out of it, no device, no more than 20 times the archive's size.

    All of it is unpacked beside and then moved, so that what is there is whole. Raises DatasetError.
    """
    archive, target = Path(archive), Path(target)
    limit = _GROWTH * archive.stat().st_size + (100 << 20)
    draft = target / f".{archive.name}.unpacking"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                members = file.infolist()
                _check_size(sum(m.file_size for m in members), limit, target)
                for member in tqdm(members, desc=f"unpacking {archive.name}", unit="file", disable=None):
                    _check(member.filename, target)
                    file.extract(member, draft)
        else:
            total = 0
            with tarfile.open(archive) as file:
                for member in tqdm(file, desc=f"unpacking {archive.name}", unit="file", disable=None):
                    _check(member.name, target)
                    total += member.size
                    _check_size(total, limit, target)
                    _extract(file, member, draft)
        _move(draft, target)
    except DatasetError as error:
        raise DatasetError(f"{archive} was not unpacked: {error}.") from None
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise DatasetError(
            f"{archive} was not unpacked: {error}. If it was downloaded, delete it and run the command again."
        ) from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _extract(file, member, draft):
    """Unpack a member of a tar as tarfile's "data" filter does; a Python without it (3.10.11, 3.11.3 and older) unpacks files and folders only."""
    path = draft / member.name
    if hasattr(tarfile, "data_filter"):
        file.extract(member, draft, filter="data")
    elif member.isdir():
        path.mkdir(parents=True, exist_ok=True)
    elif member.isfile():
        path.parent.mkdir(parents=True, exist_ok=True)
        with file.extractfile(member) as source, open(path, "wb") as copy:
            shutil.copyfileobj(source, copy)
    else:
        raise DatasetError(
            f"'{member.name}' is neither a file nor a folder; unpack it by hand, or use Python 3.10.12, 3.11.4 or newer"
        )


def _check_size(total, limit, target):
    if total > limit:
        raise DatasetError(f"it holds over {limit >> 20} MB, more than an archive of its size should")
    free = shutil.disk_usage(target).free
    if total > free:
        raise DatasetError(f"it needs {total >> 20} MB and {free >> 20} MB are free at {target}")


def _move(draft, target):
    for path in sorted(draft.iterdir()):
        place = target / path.name
        if place.is_dir() and path.is_dir():
            _move(path, place)
        else:
            path.replace(place)


def locate(source, root):
    """The folder below `root` that holds the raw files of `source` (Source), unpacking or downloading them if need be. Raises DatasetError."""
    root = Path(root)

    def found():
        return next((root / f for f in source.folders if all((root / f / m).exists() for m in source.markers)), None)

    def unpack_all():
        for name in source.files:
            if (root / name).is_file() and _is_archive(name):
                unpack(root / name, root)

    if not found():
        unpack_all()
    if not found() and source.files:
        try:
            for name, (url, checksum) in source.files.items():
                if not (root / name).exists():
                    if url is None:
                        raise OSError("it can't be downloaded without you")
                    download(url, root / name, checksum)
        except OSError as error:
            reason = getattr(error, "reason", error)
            raise DatasetError(
                f"The raw files are not under {root} and could not be fetched ({reason}). Get {', '.join(source.files)} from {source.address}, "
                f"put them into {root} as they are (or the unpacked files: {', '.join(source.markers)}), and run the command again; "
                f"or name the folder that holds them with --root."
            ) from None
        unpack_all()
    folder = found()
    if folder is None:
        raise DatasetError(
            f"{root} does not hold the dataset: {', '.join(source.markers)} must be there. "
            + (
                f"The files are {', '.join(source.files)} from {source.address}."
                if source.files
                else f"See {source.address}."
            )
        )
    return folder


def _is_archive(name):
    return name.endswith((".tar", ".tgz", ".tar.gz", ".zip"))
