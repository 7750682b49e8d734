"""Pictures show the names of classes and files as they are, whatever they are."""

import numpy as np
import pytest
import torch

from idmm_fast.beton import write_beton
from idmm_fast.datasets import Split
from idmm_fast.plots.classification import plot_confusion, plot_mistakes
from idmm_fast.plots.figure import shown_name
from idmm_fast.plots.image_grid import plot_image_grid
from idmm_fast.plots.neighbours import Side, plot_neighbours

NAMES = ["caf\udce9", r"$\frac$"]  # bytes that are no UTF-8; a formula that is wrong


def test_a_name_is_shown_without_formulas_broken_bytes_or_great_length():
    assert [shown_name(name) for name in ("cat", *NAMES)] == ["cat", r"caf\udce9", r"\$\frac\$"]
    assert shown_name("$" * 24) == r"\$" * 24
    assert shown_name("$" * 25) == r"\$" * 23 + "…"
    assert shown_name("a" * 25, 0) == "a" * 25


@pytest.mark.usefixtures("compiled_kernels")
def test_any_name_can_be_drawn(tmp_path):
    split = Split(list(np.zeros((2, 16, 16, 3), np.uint8)), [0, 1], NAMES)
    path = tmp_path / f"{NAMES[0]}$a${NAMES[1]}.beton"
    write_beton(path, split, dataset="test", name="train", mode="raw", quiet=True)
    side = Side(path, torch.eye(2), torch.arange(2), np.arange(2))
    plot_neighbours(side, side, tmp_path / "neighbours.png", NAMES, k=2, size=16)
    plot_image_grid(path, tmp_path / "grid.png", columns=2, rows=1)
    plot_confusion(np.eye(2, dtype=np.int64), NAMES, tmp_path / "confusion.png")
    plot_mistakes(path, [0, 1], NAMES, tmp_path / "mistakes.png", 16)
    assert {file.stem for file in tmp_path.glob("*.png")} == {"neighbours", "grid", "confusion", "mistakes"}
