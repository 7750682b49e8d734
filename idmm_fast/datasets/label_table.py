"""Labels from a table beside the images, a CSV file as Kaggle, Roboflow and spreadsheets write it.

A row names a file, its label, and perhaps its split. Or it has a 0 or 1 for each class, in columns named like them.
"""

import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .image_files import LeftOut, image_files, natural_order
from .split import DatasetError, Split, names_below, split_of

# Names of columns, in lower case and with underscores for blanks and hyphens; the first that there is.
FILES = (
    *("file", "filename", "file_name", "filepath", "file_path", "path", "image", "images", "img", "image_path"),
    *("image_name", "image_file", "image_id", "imageid", "img_id", "photo", "picture", "name", "id"),
)
LABELS = (
    *("label", "labels", "class", "classname", "class_name", "category", "target", "species", "breed", "diagnosis"),
    *("dx", "variety", "type", "class_id", "label_id", "category_id", "y"),
)
SPLITS = ("split", "set", "subset", "partition", "dataset", "usage")
_OF_OTHER_THINGS_TOO = ("set", "dataset", "usage")  # may say where an image is from


@dataclass(frozen=True)
class Columns:
    """Which columns of a table hold what.

    Attributes:
        file: Of the file's name.
        label: Of the label; None: `classes` has them.
        split: Of the split's name; None: there is none.
        classes: Columns of 0 and 1, one a class.
    """

    file: str
    label: str | None
    split: str | None
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Row:
    """A row: where it stands, the file's name, the label ("" for none), the split's name ("" for none)."""

    where: str
    file: str
    label: str
    split: str


def load_by_table(
    root: Path,
    labels: str,
    file_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
) -> dict[str, Split]:
    """The splits of images whose labels stand in tables.

    Args:
        root: The folder that the images are below.
        labels: The table; or a name that tables have in `root` or in the folders of its splits.
        file_column: The column of the files' names; None: by its name, see FILES.
        label_column: That of the labels; None: by its name, or one of 0 and 1 for each class.
        split_column: That of the splits; None: by its name. Without one, a table or an image in a folder named like a
            split, or a table named like one, is of that split.

    Returns:
        Of {"train": Split, "val": Split, "test": Split} those that there are. Images in a folder of the test split that
        no row names have no labels (-1).

    Raises:
        DatasetError: There is no such table or column; no row's file is there; or names or labels contradict.
    """
    left_out, remarks = LeftOut(), list[str]()
    files = _Files(root, image_files(root, left_out))
    found: dict[Path, tuple[str, str, str]] = {}  # image: split, label, where
    for table in _tables(root, labels):
        for row in _rows(table, (file_column, label_column, split_column), left_out, remarks):
            split = _said_split(row, table, root)
            image = files.find(row, table, split)
            if image is None:
                left_out.add("rows without an image file", f"{row.where}: {row.file}")
                continue
            entry = split or files.split_of_folder(image) or "train", row.label, row.where
            before = found.setdefault(image, entry)
            if before[:2] != entry[:2]:
                raise DatasetError(
                    f"{row.where} says other things of {image} than {before[2]}. Remove one of the rows."
                )
            if before is not entry:
                left_out.add("rows that name an image again", row.where)
    if not found:
        raise DatasetError(f"no row of {labels} names an image that is under {root}.{left_out.sentences()}")
    unnamed = [image for image in files.images if image not in found]
    splits = _splits(root, found, unnamed, left_out, remarks)
    return {n: replace(split, left_out=left_out.listing(), remarks=remarks) for n, split in splits.items()}


def _tables(root: Path, labels: str) -> list[Path]:
    """The tables that `labels` names."""
    if Path(labels).is_file():
        return [Path(labels)]
    tables = sorted(path for path in [root / labels, *root.glob(f"*/{Path(labels).name}")] if path.is_file())
    if not tables:
        raise DatasetError(f"--labels {labels}: there is no such file, nor one of this name in {root} or its folders.")
    return tables


def _rows(table: Path, named: Sequence[str | None], left_out: LeftOut, remarks: list[str]) -> Iterable[Row]:
    """The rows of a table."""
    try:
        lines = table.read_text(encoding="utf-8-sig").splitlines()
        head = next((line for line in lines if line.strip()), "")
        delimiter = max(",;\t|", key=head.count)
        rows = [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=delimiter)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{table} is not a CSV file in UTF-8: {error}") from None
    numbered = [(number, row) for number, row in enumerate(rows, 1) if any(row)]
    if len(numbered) < 2:
        raise DatasetError(f"{table} has no rows below its first, which names the columns.")
    names = numbered[0][1]
    cells = [(f"{table}, row {number}", dict(zip(names, row))) for number, row in numbered[1:]]
    columns = _columns(table, names, [row for _, row in cells], named, remarks)
    remarks.append(
        f"{table}: files are in the column {columns.file}, labels in "
        f"{columns.label or f'{len(columns.classes)} columns of 0 and 1'}"
        f"{f', splits in {columns.split}' if columns.split else ''}"
    )
    for where, row in cells:
        label = row.get(columns.label, "") if columns.label else ""
        if columns.classes:
            ones = [name for name in columns.classes if _number(row.get(name)) == 1]
            if len(ones) != 1:
                left_out.add("rows with several classes, or none", where)
                continue
            label = ones[0]
        yield Row(where, row.get(columns.file, ""), label, row.get(columns.split, "") if columns.split else "")


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None


def _columns(
    table: Path, names: list[str], rows: list[dict[str, str]], named: Sequence[str | None], remarks: list[str]
) -> Columns:
    """Which columns hold what: those that are named, else by what they are called."""
    plain = {name.lower().replace(" ", "_").replace("-", "_"): name for name in reversed(names)}
    there = f"Its columns are: {', '.join(names)}."
    for column, option in zip(named, ("file", "label", "split")):
        if column is not None and column not in names:
            raise DatasetError(f"{table} has no column {column}, which --{option}-column names. {there}")
    file, label = (
        column or next((plain[name] for name in known if name in plain), None)
        for column, known in zip(named, (FILES, LABELS))
    )
    called = [plain[name] for name in SPLITS if name in plain and plain[name] not in (file, label)]
    split = named[2] or _split_column(table, called, rows, remarks)
    if file is None:
        raise DatasetError(f"{table} has no column that is called like one of files; name it: --file-column. {there}")
    if label == file:
        label = None
    rest = [name for name in names if name and name not in (file, split)]
    if label is None and len(rest) == 1:
        label = rest[0]
    if label is None and len(rest) > 1 and all(_number(row.get(name)) in (0, 1) for row in rows for name in rest):
        return Columns(file, None, split, tuple(rest))
    if label is None:
        raise DatasetError(f"{table} has no column that is called like one of labels; name it: --label-column. {there}")
    return Columns(file, label, split)


def _split_column(table: Path, called: list[str], rows: list[dict[str, str]], remarks: list[str]) -> str | None:
    """The first column that is called like one of splits, but for those whose name and content are of other things."""
    for name in called:
        said = [row[name] for row in rows if row.get(name)]
        if name.lower() not in _OF_OTHER_THINGS_TOO or not said or any(map(split_of, said)):
            return name  # of values that are no splits the first is named in an error
        remarks.append(f"{table}: the column {name} is not taken for one of splits: it holds none, first {said[0]}")
    return None


def _said_split(row: Row, table: Path, root: Path) -> str | None:
    """The split of a row by what it says, else by the folder that its table lies in, else by the table's name."""
    if row.split:
        split = split_of(row.split)
        if split is None:
            raise DatasetError(
                f"{row.where}: '{row.split}' is not a split. Write train, val or test, or leave it empty."
            )
        return split
    folder = table.parent.resolve()
    is_below = folder != root.resolve() and folder.is_relative_to(root.resolve())  # else its name says nothing
    return next(filter(None, map(split_of, [folder.name if is_below else "", table.stem])), None)


class _Files:
    """Finds images by what tables call them: a path, the end of one, or a name without its ending.

    Args:
        root: The folder that they are below.
        images: All of them.
    """

    def __init__(self, root: Path, images: list[Path]) -> None:
        self.root, self.images = root, images
        self._by_name: dict[str, list[Path]] = {}
        for image in images:
            for name in {image.name, image.stem}:
                self._by_name.setdefault(name, []).append(image)
        self._splits = set(map(self.split_of_folder, images))

    def split_of_folder(self, image: Path) -> str | None:
        """The split whose folder an image lies in, if there is one."""
        return next(filter(None, map(split_of, image.relative_to(self.root).parts[:-1])), None)

    def find(self, row: Row, table: Path, split: str | None) -> Path | None:
        """The image of a row of a split, None if it is not there. Raises DatasetError where there are two."""
        name = row.file.replace("\\", "/").strip("/").removeprefix("./")
        if not name:
            return None
        ends = self._by_name.get(name.rpartition("/")[2], [])
        hits = [image for image in ends if self._ends(image, name)]
        for near in (table.parent, self.root):
            exact = [image for image in hits if (near / name) in (image, image.with_suffix(""))]
            hits = exact or hits
        if split and "/" not in name and split in self._splits:  # images of other splits may be called the same
            hits = [image for image in hits if self.split_of_folder(image) in (split, None)]
            hits = [image for image in hits if self.split_of_folder(image)] or hits
        if not hits:
            files = {(near / row.file).resolve() for near in (table.parent, Path())}
            hits = [image for image in ends if image.resolve() in files]
        if len(hits) > 1:
            raise DatasetError(f"{row.where}: {row.file} may be {hits[0]} or {hits[1]}. Write its path.")
        return hits[0] if hits else None

    @staticmethod
    def _ends(image: Path, name: str) -> bool:
        return any(f"/{form.as_posix()}".endswith(f"/{name}") for form in (image, image.with_suffix("")))


def _splits(
    root: Path, found: dict[Path, tuple[str, str, str]], unnamed: list[Path], left_out: LeftOut, remarks: list[str]
) -> dict[str, Split]:
    """The splits of the images that tables name, and of those in a folder of the test split that none does."""
    present = {split for split, _, _ in found.values()}
    deciding = "train" if "train" in present else min(present)
    classes = sorted({label for split, label, _ in found.values() if split == deciding and label}, key=natural_order)
    number = {name: k for k, name in enumerate(classes)} | {"": -1}
    for image, (split, label, where) in found.items():
        if label not in number:
            raise DatasetError(f"{where}: {image} of the {split} split has the class {label}, which training has not.")
    tests = [image for image in unnamed if "test" in map(split_of, image.relative_to(root).parts[:-1])]
    if "test" not in present and tests:
        found |= dict.fromkeys(tests, ("test", "", ""))
        remarks.append("images in a folder of the test split are in no table: they have no labels (-1)")
    rest = [image for image in unnamed if image not in found]
    left_out.add("images that no row names", rest[0] if rest else "", len(rest))
    splits = {}
    for split in ("train", "val", "test"):
        images = sorted(image for image, (of, _, _) in found.items() if of == split)
        if images:
            labels = [number[found[image][1]] for image in images]
            splits[split] = Split(images, labels, classes, names_below(root, images))
    return splits
