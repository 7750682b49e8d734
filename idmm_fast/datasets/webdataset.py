"""WebDataset shards: .tar files of KEY.jpg and KEY.cls or KEY.json ({"label": ...}), named with --shards.

Source: the webdataset package's convention. Shards are read in place. Without labels every image is of one class.
"""

import json
import re
import tarfile
from pathlib import Path

from tqdm import tqdm

from .image_files import image_endings
from .split import DatasetError, FileSlice, Split

OPTIONS = ("shards",)


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


def load(root: Path | None, shards: str | None) -> dict[str, Split]:
    """The images of the shards.

    Args:
        root: Not used.
        shards: Pattern of the tar files, see `expand`.

    Returns:
        {"train": Split}

    Raises:
        DatasetError: A shard is missing or not an uncompressed tar, there is no image, or only some have labels.
    """
    if not shards:
        raise DatasetError("--ds webdataset needs --shards, e.g. --shards 'dir/{000..011}.tar'")
    images: list[FileSlice] = []
    found: list[str | None] = []
    for path in tqdm(expand(shards), desc="shards", disable=None):
        shard, labels = _read_shard(path)
        images += shard
        found += [labels.get(image.name.rpartition(".")[0]) for image in shard]
    if not images:
        raise DatasetError(f"--shards {shards}: no image was found in them.")
    if None in found and any(label is not None for label in found):
        name = images[found.index(None)]
        raise DatasetError(
            f"{name} has no label (.cls, or 'label' in .json), and others do. Give all of them one, or none."
        )
    names = ["all" if label is None else label for label in found]
    numbers = all(name.isdigit() for name in names)
    classes = sorted(set(names), key=int if numbers else None)
    index = {c: k for k, c in enumerate(classes)}
    return {"train": Split(images, [index[name] for name in names], classes, [image.name for image in images])}


def _read_shard(path: Path) -> tuple[list[FileSlice], dict[str, str]]:
    """The images of a shard, and {key: label}."""
    images: list[FileSlice] = []
    labels: dict[str, str] = {}
    try:
        with tarfile.open(path, "r:") as file:  # uncompressed, so that images can be read in place
            for member in file:
                stem, _, extension = member.name.rpartition(".")
                if not member.isfile():
                    continue
                if f".{extension.lower()}" in image_endings():
                    images.append(FileSlice(path, member.offset_data, member.size, member.name))
                elif extension == "cls":
                    labels[stem] = _content(file, member).decode().strip()
                elif extension == "json":
                    content = json.loads(_content(file, member))
                    if isinstance(content, dict) and "label" in content:
                        labels[stem] = str(content["label"])
    except (tarfile.TarError, ValueError) as error:
        raise DatasetError(f"{path} is not an uncompressed tar of a WebDataset: {error}") from None
    return images, labels


def _content(file: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    """The bytes of a member that is a file."""
    content = file.extractfile(member)
    assert content is not None
    return content.read()
