"""WebDataset shards: .tar files of KEY.jpg and KEY.cls or KEY.json ({"label": ...}), named with --shards, read where they lie.

Source: the webdataset package's convention. Without labels every image is of one class.
"""

import json
import re
import tarfile
from pathlib import Path

from tqdm import tqdm

from .folder import EXTENSIONS
from .split import DatasetError, FileSlice, Split

OPTIONS = ("shards",)


def expand(pattern):
    """The files that a pattern names: 'a/{000..011}.tar', 'a/*.tar', or a file. In order."""
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
            f"--shards {pattern}: {', '.join(missing[:3]) or 'no file'} does not exist. Name them as 'dir/{{000..011}}.tar' or 'dir/*.tar'."
        )
    return paths


def load(root, shards):
    if not shards:
        raise DatasetError("--ds webdataset needs --shards, e.g. --shards 'dir/{000..011}.tar'")
    images, found = [], []
    for path in tqdm(expand(shards), desc="shards", disable=None):
        labels = {}
        first = len(images)
        try:
            with tarfile.open(path, "r:") as file:  # uncompressed, so that images can be read where they lie
                for member in file:
                    stem, _, extension = member.name.rpartition(".")
                    if not member.isfile():
                        continue
                    if f".{extension.lower()}" in EXTENSIONS:
                        images.append(FileSlice(path, member.offset_data, member.size, member.name))
                    elif extension == "cls":
                        labels[stem] = file.extractfile(member).read().decode().strip()
                    elif extension == "json":
                        content = json.loads(file.extractfile(member).read())
                        if isinstance(content, dict) and "label" in content:
                            labels[stem] = str(content["label"])
        except (tarfile.TarError, ValueError) as error:
            raise DatasetError(f"{path} is not an uncompressed tar of a WebDataset: {error}") from None
        found += [labels.get(image.name.rpartition(".")[0]) for image in images[first:]]
    if not images:
        raise DatasetError(f"--shards {shards}: no image was found in them.")
    if any(label is None for label in found):
        if any(label is not None for label in found):
            name = images[found.index(None)]
            raise DatasetError(
                f"{name} has no label (.cls, or 'label' in .json), and others do. Give all of them one, or none."
            )
        found = ["all"] * len(images)
    numbers = all(label.isdigit() for label in found)
    classes = sorted(set(found), key=int if numbers else None)
    index = {c: k for k, c in enumerate(classes)}
    return {"train": Split(images, [index[label] for label in found], classes, [image.name for image in images])}
