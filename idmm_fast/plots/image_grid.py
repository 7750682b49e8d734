"""A contact sheet: the first images of a beton with their labels, as one picture."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..beton import open_beton
from ..beton.decode import decode_rows


def plot_image_grid(path, out=None, columns=8, rows=6):
    """Write a PNG of the first columns * rows images of the beton `path` (rows are shuffled, so they are a sample). Returns its path."""
    beton = open_beton(path)
    out = Path(out) if out else Path(path).with_suffix(".png")
    count = min(columns * rows, len(beton))
    images = decode_rows(beton, range(count))
    lines = -(-count // columns)
    figure = Figure(figsize=(1.5 * columns, 1.65 * lines + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for row, (axis, image) in enumerate(zip(axes, images)):
        axis.imshow(image)
        label = int(beton.label[row])
        axis.set_title(f"{row}: {beton.classes[label]}" if 0 <= label < len(beton.classes) else str(row), fontsize=7)
    figure.suptitle(f"{Path(path).name}: {len(beton)} images, {len(beton.classes)} classes", fontsize=9)
    figure.savefig(out, dpi=100)
    return out
