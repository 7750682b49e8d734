"""Figures that need no display: every picture of this package is drawn on one of these."""

from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..files import replacing


def new_figure(width: float, height: float) -> Figure:
    """An empty figure with constrained layout, whatever backend matplotlib is set to.

    Args:
        width: In inches.
        height: In inches.

    Returns:
        The figure; `save_figure` writes it.
    """
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def save_figure(figure: Figure, path: str | Path, dpi: int = 110) -> None:
    """Write a figure, whole or not at all.

    Args:
        figure: Of `new_figure`.
        path: The file; its ending says which format it has.
        dpi: Pixels an inch.
    """
    with replacing(path) as draft:
        figure.savefig(draft, dpi=dpi, format=Path(path).suffix.removeprefix(".") or "png")


def shown_name(name: str, letters: int = 24) -> str:
    r"""The name of a class or a file, as the text of a figure: matplotlib shows it as it is, a formula or not.

    Args:
        name: whatever a folder may be called; bytes that are no UTF-8 are shown as \udce9.
        letters: a longer name is cut to so many, the last one an ellipsis; 0: it is left whole.
    """
    text = name.encode("utf-8", "backslashreplace").decode()
    if letters and len(text) > letters:
        text = f"{text[: letters - 1]}…"
    return text.replace("$", r"\$")
