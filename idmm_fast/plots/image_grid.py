"""An image grid: the first images of a dataset with their labels, as one picture."""

from __future__ import annotations

from pathlib import Path

from ..beton import open_beton
from ..beton.decode import decode_rows
from .figure import new_figure, save_figure, shown_name


def plot_image_grid(path: str | Path, out: str | Path | None = None, columns: int = 8, rows: int = 6) -> Path:
    """Write a PNG of the first images of a `.beton` file, whose rows are shuffled, so that they are a sample.

    Args:
        path: the `.beton` file.
        out: the file to write; None: `path` with the suffix .png.
        columns: images side by side.
        rows: at most so many lines of images.

    Returns:
        The file that was written.
    """
    beton = open_beton(path)
    out = Path(out) if out else Path(path).with_suffix(".png")
    count = min(columns * rows, len(beton))
    images = decode_rows(beton, range(count))
    lines = -(-count // columns)
    figure = new_figure(1.5 * columns, 1.65 * lines + 0.4)
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for row, (axis, image) in enumerate(zip(axes, images)):
        axis.imshow(image)
        label = int(beton.label[row])
        is_named = 0 <= label < len(beton.classes)
        axis.set_title(f"{row}: {shown_name(beton.classes[label])}" if is_named else str(row), fontsize=7)
    name = shown_name(Path(path).name, 0)
    figure.suptitle(f"{name}: {len(beton)} images, {len(beton.classes)} classes", fontsize=9)
    save_figure(figure, out, 100)
    return out
