"""The image files below a folder: what is looked at, what counts as an image, what was left out and why."""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from PIL import Image

# Taken for images by their names; a file of another name is opened to see.
EXTENSIONS = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm"}
# Of PIL's formats: those that start another program, and those that PIL knows but can't read.
_NOT_READ = {"EPS", "MPEG", "WMF", "BUFR", "GRIB", "HDF5", "PDF"}
# What programs and systems leave among images; beside names that begin with a dot.
_SYSTEM_FOLDERS = {
    "__macosx",
    "__pycache__",
    "@eadir",
    "@recycle",
    "@recently-snapshot",
    "@tmp",
    "#recycle",
    "#snapshot",
    "$recycle.bin",
    "lost+found",
    "system volume information",
}


@dataclass
class LeftOut:
    """What a conversion leaves out: how many for each reason, and the first example.

    Attributes:
        reasons: {reason: [count, first example]}.
    """

    reasons: dict[str, list] = field(default_factory=dict)

    def add(self, reason: str, example: object, count: int = 1) -> None:
        """Count `count` more, of which `example` is the first."""
        if count:
            self.reasons.setdefault(reason, [0, str(example)])[0] += count

    def listing(self) -> list[dict]:
        """[{"reason", "count", "first"}], as it stands in a sidecar."""
        return [{"reason": reason, "count": n, "first": first} for reason, (n, first) in self.reasons.items()]

    def sentences(self) -> str:
        """The same for a message, with a blank before."""
        return "".join(f" Left out: {n}, {reason}, first {first}." for reason, (n, first) in self.reasons.items())


def natural_order(name: str) -> list:
    """A key for sorting names as people count: 2 before 10, x before x2. Names without digits keep their order.

    Args:
        name: Of a class, say.
    """
    parts: list = re.split(r"([0-9]+)", name)
    parts[1::2] = map(int, parts[1::2])
    return [parts, name]  # the name itself, where numbers are equal: 1 and 01


@cache
def openable_formats() -> tuple[str, ...]:
    """PIL's formats that are read here, those of plug-ins (HEIC, JPEG XL) included where they are installed."""
    for plugin in ("pillow_heif", "pillow_jxl"):
        try:
            module = __import__(plugin)
            getattr(module, "register_heif_opener", lambda: None)()
        except ImportError:
            pass
    Image.init()
    return tuple(name for name in Image.OPEN if name not in _NOT_READ)


@cache
def image_endings() -> frozenset[str]:
    """The endings of files that are images, in lower case and with the dot."""
    known = set(openable_formats())
    return frozenset(EXTENSIONS | {end for end, name in Image.registered_extensions().items() if name in known})


def _opens(path: Path) -> bool:
    """Whether PIL takes the file for an image, by its first bytes."""
    try:
        with Image.open(path, formats=openable_formats()):
            return True
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        return True  # a large one
    except Exception:  # PIL raises many kinds for files that are no images
        return False


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name holds no images of the user's: hidden, or a system's."""
    return name.startswith(".") or name.lower() in _SYSTEM_FOLDERS


def image_files(root: str | Path, left_out: LeftOut | None = None) -> list[Path]:
    """The images anywhere below a folder.

    Links to files and folders are followed. A folder that two links lead to is read once. Hidden files and folders, and
    those that systems make (`__MACOSX`, `@eaDir`), are passed over.

    Args:
        root: The folder.
        left_out: What was left out is counted here.

    Returns:
        Paths that begin with `root`, sorted.

    Raises:
        OSError: The folder itself can't be read.
    """
    left_out = LeftOut() if left_out is None else left_out
    endings: dict[str, int] = {}
    strange: list[Path] = []
    images = []
    for path in _files(Path(root), left_out, set()):
        if path.suffix.lower() in EXTENSIONS or _opens(path):
            images.append(path)
        else:
            strange.append(path)
            endings[path.suffix.lower()] = endings.get(path.suffix.lower(), 0) + 1
    if strange:
        counted = sorted(endings.items(), key=lambda item: (-item[1], item[0]))
        named = ", ".join(f"{n} {ending or 'without an ending'}" for ending, n in counted[:5])
        hint = "; HEIC needs: pip install pillow-heif" if {".heic", ".heif"} & set(endings) else ""
        left_out.add(
            f"no images, as far as PIL can tell ({named}{', ...' if len(counted) > 5 else ''}{hint})",
            min(strange),
            len(strange),
        )
    return sorted(images)


def _files(folder: Path, left_out: LeftOut, seen: set[tuple[int, int]]) -> Iterator[Path]:
    """The files of a tree. `seen` are the folders (device, inode) that were read."""
    state = os.stat(folder)
    if (state.st_dev, state.st_ino) in seen:
        left_out.add("links to folders that were read already", folder)
        return
    seen.add((state.st_dev, state.st_ino))
    with os.scandir(folder) as entries:
        listing = sorted(entries, key=lambda e: (e.is_symlink(), e.name))  # what lies here is read by its own name
    for entry in listing:
        path = folder / entry.name
        try:
            if is_hidden(entry.name):
                left_out.add("hidden files and folders, or a system's", path)
            elif entry.is_dir():
                yield from _files(path, left_out, seen)
            elif entry.is_file():
                yield path
            elif entry.is_symlink():
                left_out.add("links that lead nowhere", path)
            else:
                left_out.add("neither files nor folders", path)
        except OSError as error:
            left_out.add(f"could not be opened ({error.strerror})", path)
