"""Fetching raw files: downloads that resume and are checked, archives that are unpacked safely."""

import hashlib
import http.client
import lzma
import shutil
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from tqdm import tqdm

from .split import DatasetError
from .tar import StrictTarInfo

_BLOCK = 1 << 20
_TIMEOUT = 30  # seconds without a byte
_GROWTH = 20  # photographs hardly shrink in an archive; one that unpacks to more than 20 times its size is a trap


def md5(path: Path) -> str:
    """The MD5 of a file, as hex digits."""
    digest = hashlib.md5(usedforsecurity=False)
    with open(path, "rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def download(url: str, path: Path, checksum: str | None = None) -> None:
    """Fetch a file, and resume a download that was interrupted.

    Args:
        url: Its address.
        path: Where it goes. PATH.part holds what has come so far, and is kept for the next try.
        checksum: Its MD5, as hex digits.

    Raises:
        OSError: No network, or an error of the server.
        DatasetError: The file is not what was published.
    """
    part = path.with_name(path.name + ".part")
    path.parent.mkdir(parents=True, exist_ok=True)
    done = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(
        url, headers={"User-Agent": "idmm-fast"} | ({"Range": f"bytes={done}-"} if done else {})
    )
    try:
        response = urllib.request.urlopen(request, timeout=_TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # the part is complete already
            raise
        response = None
    if response is not None:
        with response:
            if done and response.status != 206:  # a server that can't resume begins anew
                done = 0
            length = response.headers.get("Content-Length")
            total = done + int(length) if length else None
            with (
                open(part, "ab" if done else "wb") as file,
                tqdm(total=total, initial=done, desc=path.name, unit="B", unit_scale=True, disable=None) as bar,
            ):
                try:
                    while block := response.read(_BLOCK):
                        file.write(block)
                        bar.update(len(block))
                except http.client.HTTPException as error:
                    raise OSError(f"the connection ended ({error!r}); run it again to resume") from error
            size = part.stat().st_size
            if total is not None and size < total:
                raise OSError(f"the connection ended after {size} of {total} bytes; run it again to resume")
            if total is not None and size > total:
                part.unlink()
                raise OSError(f"{size} bytes came, and the server said {total}; run it again")
    if checksum and md5(part) != checksum:
        part.unlink()
        raise DatasetError(
            f"{url} is not the file that was published (its MD5 differs); it was deleted. "
            f"Try again, or fetch it by hand."
        )
    part.replace(path)


def _check(name: str, target: Path) -> None:
    """Refuse a name that leads out of the target folder."""
    pure = PurePosixPath(name.replace("\\", "/"))
    if pure.is_absolute() or ".." in pure.parts:
        raise DatasetError(f"'{name}' leads out of {target}")


def unpack(archive: Path, target: Path) -> None:
    """Unpack an archive, all of it or nothing.

    Args:
        archive: A tar (any compression) or zip.
        target: The folder.

    Raises:
        DatasetError: The archive is damaged, holds a device or a path or link out of the folder, or unpacks to more
            than 20 times its size, or than is free.
        OSError: The folder can't be written.
    """
    limit = _GROWTH * archive.stat().st_size + (100 << 20)
    draft = target / f".{archive.name}.unpacking"
    shutil.rmtree(draft, ignore_errors=True)
    draft.mkdir(parents=True)
    free = shutil.disk_usage(target).free
    try:
        if zipfile.is_zipfile(archive):
            with zipfile.ZipFile(archive) as file:
                members = file.infolist()
                _check_size(sum(m.file_size for m in members), limit, free, target)
                for member in tqdm(members, desc=f"unpacking {archive.name}", unit="file", disable=None):
                    _check(member.filename, target)
                    file.extract(member, draft)
        else:
            total = 0
            with tarfile.open(archive, tarinfo=StrictTarInfo) as file:
                for member in tqdm(file, desc=f"unpacking {archive.name}", unit="file", disable=None):
                    _check(member.name, target)
                    total += member.size
                    _check_size(total, limit, free, target)
                    _extract(file, member, draft)
                while file.fileobj.read(_BLOCK):  # to the end of a compressed stream, where its checksum is compared
                    pass
        _move(draft, target)
    except DatasetError as error:
        raise DatasetError(f"{archive} was not unpacked: {error}.") from None
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk; gzip's and bz2's own, of damage, have no number
        raise DatasetError(
            f"{archive} was not unpacked: {error}. If it was downloaded, delete it and run the command again."
        ) from None
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _extract(file: tarfile.TarFile, member: tarfile.TarInfo, draft: Path) -> None:
    """Unpack a member of a tar as tarfile's "data" filter does; Python before 3.10.12 and 3.11.4 has none."""
    path = draft / member.name
    if hasattr(tarfile, "data_filter"):
        file.extract(member, draft, filter="data")
    elif member.isdir():
        path.mkdir(parents=True, exist_ok=True)
    elif member.isfile():
        path.parent.mkdir(parents=True, exist_ok=True)
        source = file.extractfile(member)
        assert source is not None  # it is a file
        with source, open(path, "wb") as copy:
            shutil.copyfileobj(source, copy)
    else:
        raise DatasetError(
            f"'{member.name}' is neither a file nor a folder; unpack it by hand, or use Python 3.10.12, 3.11.4 or newer"
        )


def _check_size(total: int, limit: int, free: int, target: Path) -> None:
    """Refuse an archive that unpacks to more than `limit` or than what was `free` at `target`, in bytes."""
    if total > limit:
        raise DatasetError(f"it holds over {limit >> 20} MB, more than an archive of its size should")
    if total > free:
        raise DatasetError(f"it needs {total >> 20} MB and {free >> 20} MB are free at {target}")


def _move(draft: Path, target: Path) -> None:
    """Move what is in `draft` into `target`, folders merged; nothing is written where a link to a folder leads."""
    for path in sorted(draft.iterdir()):
        place = target / path.name
        if place.is_dir() and path.is_dir():
            if place.is_symlink():
                _add_links(path, place)
                place.unlink()
                path.replace(place)
            else:
                _move(path, place)
        else:
            path.replace(place)


def _add_links(folder: Path, other: Path) -> None:
    """Add to a folder links to what another one has beside."""
    for entry in other.iterdir():
        own = folder / entry.name
        if own.is_dir() and entry.is_dir():
            _add_links(own, entry)
        elif not own.exists():
            own.symlink_to(entry.resolve())
