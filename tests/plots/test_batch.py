"""The picture of a batch says what is in it."""

import pytest

from idmm_fast.loader import MultiCropLoader
from idmm_fast.loader.crops import Views
from idmm_fast.plots.batch import plot_batch


@pytest.mark.usefixtures("compiled_kernels")
@pytest.mark.parametrize("alpha", [0.0, 1.0])
def test_the_cutmix_box_is_told_of_where_crops_are_mixed(tiny_beton, tmp_path, monkeypatch, alpha):
    texts = []

    def save_figure(figure, path):
        texts.extend([figure.get_suptitle(), figure.axes[0].get_title(), figure.axes[0].get_xlabel()])

    monkeypatch.setattr("idmm_fast.plots.batch.save_figure", save_figure)
    views = [Views(1, 32)]
    loader = MultiCropLoader(tiny_beton, 8, num_workers=1, views=views, cutmix_alpha=alpha)
    plot_batch(loader, tmp_path / "crops.png")
    loader.close()
    assert ["CutMix" in texts[0], "λ" in texts[1], "|" in texts[2]] == [alpha > 0] * 3
