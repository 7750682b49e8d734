"""How far class weights move between visits: the infrequent updating problem that label smoothing and CutMix address.

In instance discrimination a class is one image, and its weight w_k meets it once an epoch. The same epochs are trained
four ways: plain, with label smoothing, with CutMix, with both. The head learns by plain gradient descent, so a weight
moves by the learning rate times its gradient, for which the paper has closed forms (arXiv 2201.10728):

    dL_i/dw_k = (p_k - [k = i]) z_i               plain: nothing, once p_k is near 0
    dL_i/dw_k = (p_k - eps / N) z_i, k unrelated  with smoothing: every class, at every step

What is shown is the median gradient norm of the classes whose image is not in the batch, beside that of the others.
"""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from ..config import ConfigError
from ..files import write_json
from ..loader import Augment, MultiCropLoader, Views
from ..losses import instance_loss
from ..models import Normalize, create_backbone, feature_dim, init_head
from ..plots.figure import new_figure, save_figure

SMOOTHING = 0.1


@dataclass(frozen=True)
class Variant:
    """What is switched on: label smoothing (0 to 1), and CutMix with this alpha."""

    label_smoothing: float
    cutmix_alpha: float


VARIANTS = {
    "plain": Variant(0.0, 0.0),
    "label smoothing": Variant(SMOOTHING, 0.0),
    "CutMix": Variant(0.0, 0.5),
    "both": Variant(SMOOTHING, 0.5),
}
# Per epoch: median gradient norms of the classes outside and inside the batch; the fraction of those outside that move
# by more than a twentieth of `inside`; the norm that smoothing alone gives (eps / N times the mean feature); the loss;
# the median probability of a class outside the batch.
FIGURES = ("outside", "inside", "moving", "smoothing_floor", "loss", "probability")
Figures = dict[str, np.ndarray]  # {one of FIGURES: float64 (epochs,)}


@dataclass(frozen=True)
class Length:
    """How long a variant is trained, on how much."""

    images: int
    epochs: int
    batch_size: int


def updates(
    cfg: SimpleNamespace,
    out: Path | str,
    images: int = 128,
    epochs: int = 250,
    batch_size: int = 16,
    head_lr: float = 1.0,
) -> dict[str, Figures]:
    """Train all variants and write updates.png and updates.json.

    Args:
        cfg: A configuration of pretraining: data, model, seed and the backbone's learning rate.
        out: The folder for both files.
        images: How many images, each its own class.
        epochs: Of each variant.
        batch_size: Images a step.
        head_lr: Learning rate of the head's plain gradient descent.

    Returns:
        {variant: {figure: float64 (epochs,)}}, see FIGURES.

    Raises:
        ConfigError: All images fit into a step, so no class is ever outside the batch.
    """
    if batch_size >= images:
        raise ConfigError(f"a step of {batch_size} images leaves none of the {images} out; use fewer images a step")
    out = Path(out)
    length = Length(images, epochs, batch_size)
    with tqdm(total=len(VARIANTS) * epochs * (images // batch_size), unit="step", disable=None) as progress:
        result = {name: _train(cfg, variant, length, head_lr, progress) for name, variant in VARIANTS.items()}
    content = {name: {key: values.tolist() for key, values in found.items()} for name, found in result.items()}
    write_json(out / "updates.json", content)
    _plot(result, out / "updates.png")
    return result


def _train(cfg: SimpleNamespace, variant: Variant, length: Length, head_lr: float, progress: tqdm) -> Figures:
    """The figures of one variant."""
    torch.manual_seed(cfg.training.seed)
    size = cfg.model.image_size
    loader = MultiCropLoader(
        cfg.data.train,
        length.batch_size,
        cfg.data.num_workers,
        cfg.training.seed,
        variant.cutmix_alpha,
        [Views(1, size, (0.6, 1.0))],
        Augment(flip_prob=0.5, jitter_prob=0, grayscale_prob=0, blur_prob=0),
        rows=np.arange(length.images),
        drop_last=True,
        epochs=length.epochs,
    )
    backbone = create_backbone(cfg.model.name, size, 0.0, cfg.model.options)
    normalize = Normalize(pretraining=True)
    head: Any = init_head(feature_dim(backbone), length.images)
    optimizer = torch.optim.AdamW(backbone.parameters(), lr=cfg.training.lr, weight_decay=cfg.training.weight_decay)
    result = {key: np.zeros(length.epochs) for key in FIGURES}
    for epoch in range(length.epochs):
        seen = []
        for (group,) in loader:
            z = backbone(normalize(group.images))
            logits = head(z)
            loss = instance_loss(logits, group.idx_a, group.idx_b, group.lam, variant.label_smoothing)
            optimizer.zero_grad()
            head.zero_grad()
            loss.backward()
            seen.append(_measure(head.weight.grad, z.detach(), logits.detach(), group.idx_a, loss.item()))
            optimizer.step()
            with torch.no_grad():
                for parameter in head.parameters():
                    parameter -= head_lr * parameter.grad
            progress.update()
        for key in FIGURES:
            result[key][epoch] = np.mean([step[key] for step in seen])
    return result


def _measure(
    grad: torch.Tensor, z: torch.Tensor, logits: torch.Tensor, rows: torch.Tensor, loss: float
) -> dict[str, float]:
    """The figures of a step: grad (N, d) of the class weights, z (B, d), logits (B, N), rows (B,) of the batch."""
    norms, classes = grad.norm(dim=1), logits.shape[1]
    is_inside = torch.zeros(classes, dtype=torch.bool)
    is_inside[rows] = True
    inside = norms[is_inside].median()
    return {
        "outside": norms[~is_inside].median().item(),
        "inside": inside.item(),
        "moving": (norms[~is_inside] > 0.05 * inside).float().mean().item(),
        "smoothing_floor": (SMOOTHING / classes * z.mean(0)).norm().item(),
        "loss": loss,
        "probability": torch.softmax(logits, 1)[:, ~is_inside].mean(0).median().item(),
    }


def _plot(result: dict[str, Figures], path: Path) -> None:
    """Four charts over the epochs, a curve per variant."""
    figure = new_figure(14, 3.6)
    moving, ratio, norm, loss = figure.subplots(1, 4)
    for k, (name, values) in enumerate(result.items()):
        style = {"label": name, "color": f"C{k}"}
        epochs = np.arange(1, values["loss"].size + 1)
        moving.plot(epochs, 100 * values["moving"], **style)
        ratio.plot(epochs, values["outside"] / values["inside"], **style)
        norm.plot(epochs, values["outside"], **style)
        loss.plot(epochs, values["loss"], **style)
    floor = result["label smoothing"]["smoothing_floor"]
    norm.plot(epochs, floor, "k:", linewidth=1, label="eps / N times the mean feature")
    moving.set(
        ylim=(0, 105),
        xlabel="epoch",
        title="% of classes outside the batch\nthat move over 5 % as far as those inside",
    )
    ratio.set(yscale="log", xlabel="epoch", title="gradient norm of a class,\noutside / inside the batch")
    norm.set(yscale="log", xlabel="epoch", title="gradient norm of a class\noutside the batch (median)")
    loss.set(xlabel="epoch", title="loss")
    moving.legend(fontsize=8)
    norm.legend(fontsize=7)
    save_figure(figure, path)


def summary(result: dict[str, Figures]) -> str:
    """A Markdown table of the last epoch."""
    lines = [
        "| trained with | gradient norm outside the batch | inside | ratio | classes that move over 5 % as far | "
        "their probability | loss |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, values in result.items():
        last = {key: v[-1] for key, v in values.items()}
        lines.append(
            f"| {name} | {last['outside']:.2g} | {last['inside']:.2g} | {last['outside'] / last['inside']:.2%} | "
            f"{last['moving']:.0%} | {last['probability']:.2g} | {last['loss']:.2f} |"
        )
    floor = result["label smoothing"]["smoothing_floor"][-1]
    return (
        "\n".join(lines)
        + f"\n\nWith smoothing and p_k = 0 the closed form gives {floor:.2g} for a class outside the batch.\n"
    )
