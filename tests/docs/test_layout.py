"""The table of rooms in docs/development.md: every room is in it, and imports what the table allows."""

import ast
import re

from helpers import ROOT

PACKAGE = ROOT / "idmm_fast"
ROWS = re.findall(
    r"^\| (`[^|]+) \| [^|]+ \| ([^|]+) \|$", (ROOT / "docs" / "development.md").read_text(encoding="utf-8"), re.M
)


def names_in(cell):
    """The rooms that a cell of the table names."""
    return [name.rstrip("/").removesuffix(".py") for name in re.findall(r"`([\w.]+/?)`", cell)]


ALLOWED = {room: set(names_in(may)) for rooms, may in ROWS for room in names_in(rooms)}


def imports_of(file):
    """The rooms of the package, and the other packages, that a module imports."""
    relative = file.relative_to(PACKAGE)
    inside, outside = set(), set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            outside |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            outside.add(node.module.split(".")[0])
        elif isinstance(node, ast.ImportFrom):
            above = relative.parts[:-1][: len(relative.parts) - node.level]
            path = [*above, *(node.module or "").split(".")]
            inside |= {path[0]} if path[0] else {alias.name for alias in node.names}
    return inside - {relative.with_suffix("").parts[0]}, outside


def modules_of(room):
    folder = PACKAGE / room
    return sorted(folder.rglob("*.py")) if folder.is_dir() else [PACKAGE / f"{room}.py"]


def test_every_room_is_in_the_table():
    rooms = {path.stem for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert set(ALLOWED) == rooms - {"__init__", "__main__"}


def test_rooms_import_what_the_table_allows():
    wrong = {
        f"{file.relative_to(ROOT)} imports {name}"
        for room in ALLOWED
        for file in modules_of(room)
        for name in imports_of(file)[0]
        if name not in ALLOWED[room] and not name.startswith("__")
    }
    assert not wrong


def test_a_room_imports_only_rooms_above_it_in_the_table():
    order = list(ALLOWED)
    for room, may in ALLOWED.items():
        assert all(order.index(other) < order.index(room) for other in may), room


def test_kernels_are_numpy_and_numba_and_configurations_know_neither_numba_nor_torch():
    packages = {room: set().union(*(imports_of(file)[1] for file in modules_of(room))) for room in ALLOWED}
    assert not packages["kernels"] & {"torch", "torchvision", "timm", "matplotlib", "ffcv"}
    assert not packages["config"] & {"torch", "numba", "numpy", "timm", "ffcv"}
