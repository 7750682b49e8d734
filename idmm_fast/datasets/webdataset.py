"""WebDataset shards: .tar files of KEY.jpg and KEY.cls or KEY.json ({"label": ...}), named with --shards.

Source: the webdataset package's convention: a key ends at the first dot of the base name. Shards are read in place.
With --no-labels every image is of one class. Members that are hidden or a system's are passed over, as in folders.
"""

import json
import re
import tarfile
from pathlib import Path

from tqdm import tqdm

from .image_files import LeftOut, image_endings, is_hidden
from .split import DatasetError, FileSlice, Split
from .tar import StrictTarInfo

OPTIONS = ("shards", "no_labels")


def expand(pattern: str) -> list[Path]:
    """The files that a pattern names, in order.

    Args:
        pattern: 'a/{000..011}.tar', 'a/*.tar', or a file.

    Raises:
        DatasetError: A file does not exist, or the pattern matches none.
    """
    braces = re.search(r"\{(\d+)\.\.(\d+)\}", pattern)
    if braces:
        first, last = braces.groups()
        names = [
            f"{pattern[: braces.start()]}{n:0{len(first)}d}{pattern[braces.end() :]}"
            for n in range(int(first), int(last) + 1)
        ]
        paths = [Path(n) for n in names]
    elif any(c in pattern for c in "*?["):
        base = Path(pattern)
        anchor = Path(base.anchor) if base.is_absolute() else Path()
        paths = sorted(anchor.glob(str(base.relative_to(anchor))))
    else:
        paths = [Path(pattern)]
    missing = [str(p) for p in paths if not p.is_file()]
    if not paths or missing:
        raise DatasetError(
            f"--shards {pattern}: {', '.join(missing[:3]) or 'no file'} does not exist. "
            f"Name them as 'dir/{{000..011}}.tar' or 'dir/*.tar'."
        )
    return paths


def load(root: Path | None, shards: str | None, no_labels: str | None = None) -> dict[str, Split]:
    """The images of the shards.

    Args:
        root: Not used.
        shards: Pattern of the tar files, see `expand`.
        no_labels: Not empty: labels are not looked at.

    Returns:
        {"train": Split}

    Raises:
        DatasetError: A shard is missing, damaged or not an uncompressed tar, a label can't be read, there is no image,
            or not all have labels.
    """
    if not shards:
        raise DatasetError("--ds webdataset needs --shards, e.g. --shards 'dir/{000..011}.tar'")
    images: list[FileSlice] = []
    found: list[str | None] = []
    left_out = LeftOut()
    for path in tqdm(expand(shards), desc="shards", disable=None):
        shard, labels = _read_shard(path, left_out, with_labels=not no_labels)
        images += shard
        found += [None if no_labels else labels.get(_stem(image.name), labels.get(_key(image.name))) for image in shard]
    if not images:
        raise DatasetError(f"--shards {shards}: no image was found in them.{left_out.sentences()}")
    if None in found and not no_labels:
        raise DatasetError(
            f"{found.count(None):,} of {len(images):,} images have no label (KEY.cls, or 'label' in KEY.json; the key "
            f"is the name up to its first dot), first {images[found.index(None)]}. Give each one, or leave all "
            f"labels with --no-labels."
        )
    names = ["all" if label is None else label for label in found]
    are_numbers = all(name.isdecimal() for name in names)
    classes = sorted(set(names), key=(lambda name: (int(name), name)) if are_numbers else None)  # "1" and "01" differ
    index = {c: k for k, c in enumerate(classes)}
    files = [image.name for image in images]
    return {"train": Split(images, [index[name] for name in names], classes, files, left_out=left_out.listing())}


def _stem(name: str) -> str:
    """A member's name without its last ending."""
    return name.rpartition(".")[0]


def _key(name: str) -> str:
    """A member's name up to the first dot of its base name."""
    folder, slash, base = name.rpartition("/")
    return folder + slash + base.partition(".")[0]


def _read_shard(path: Path, left_out: LeftOut, with_labels: bool) -> tuple[list[FileSlice], dict[str, str]]:
    """The images of a shard, and {key: label}."""
    images: list[FileSlice] = []
    labels: dict[str, str] = {}
    try:
        # Uncompressed, so that images can be read in place.
        with tarfile.open(path, "r:", tarinfo=StrictTarInfo) as file:
            for member in file:
                stem, _, extension = member.name.rpartition(".")
                if not member.isfile():
                    continue
                *folders, name = member.name.split("/")
                # A tar may hold the whole path of its images, with hidden folders in it.
                if is_hidden(name) or any(is_hidden(folder) for folder in folders if not folder.startswith(".")):
                    left_out.add("hidden files and folders, or a system's", f"{path}:{member.name}")
                elif f".{extension.lower()}" in image_endings():
                    images.append(FileSlice(path, member.offset_data, member.size, member.name))
                elif with_labels and extension in ("cls", "json"):
                    try:
                        label = _label(_content(file, member), extension)
                    except ValueError as error:
                        raise DatasetError(f"{path}: the label in {member.name} can't be read: {error}") from None
                    if label:
                        labels[stem] = label
    except tarfile.TarError as error:
        raise DatasetError(f"{path} is not an uncompressed tar of a WebDataset: {error}") from None
    return images, labels


def _label(content: bytes, extension: str) -> str:
    """The label in a .cls or .json file; "" where there is none, or null. Raises ValueError."""
    if extension == "cls":
        return content.decode().strip()
    tree = json.loads(content)
    label = tree.get("label") if isinstance(tree, dict) else None
    return "" if label is None else str(label)


def _content(file: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """The bytes of a member that is a file."""
    content = file.extractfile(member)
    assert content is not None
    return content.read()
