"""Files that are written whole or not at all, and their sums."""

import hashlib
import itertools
import json
from pathlib import Path


def sha256(path, progress=None):
    """The SHA-256 of a file, as hex digits; `progress` is told how many bytes each block has."""
    digest = hashlib.sha256()
    block = bytearray(1 << 20)  # stays in the cache
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(block):
            digest.update(memoryview(block)[:count])
            if progress:
                progress(count)
    return digest.hexdigest()


def write_json(path, content):
    """A result, as JSON, whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(json.dumps(content, indent=1) + "\n")
    temporary.replace(path)


def load_or_compute(path, make):
    """The JSON in `path`, made by `make()` if it is not there: what is done is not done again."""
    if not Path(path).exists():
        write_json(path, make())
    return json.loads(Path(path).read_text())


def first_free(path):
    """The first of PATH_1, PATH_2, ... that does not exist."""
    return next(p for k in itertools.count(1) if not (p := path.with_name(f"{path.name}_{k}")).exists())
