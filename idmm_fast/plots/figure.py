"""Figures that need no display: every picture of this package is drawn on one of these."""

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure


def new_figure(width: float, height: float) -> Figure:
    """An empty figure with constrained layout, whatever backend matplotlib is set to.

    Args:
        width: In inches.
        height: In inches.

    Returns:
        The figure; `figure.savefig(path, dpi=...)` writes it.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure
