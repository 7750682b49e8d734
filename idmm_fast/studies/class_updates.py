"""The infrequent updating problem, seen: how far each class weight w_k moves at a step in which image k is not in the batch.

The same few epochs are trained four ways: plain, with label smoothing, with CutMix, with both. The head learns by plain gradient descent, so
that what w_k moves is the learning rate times its gradient, which method and closed forms speak of:

    dL_i/dw_k = (p_k - [k = i]) z_i               plain: nothing, once p_k is near 0
    dL_i/dw_k = (p_k - eps / N) z_i, k unrelated  with smoothing: every class, at every step

What is shown is the typical gradient of a class whose image is not in the batch, as a share of that of one whose image is.
"""

import json
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from tqdm import tqdm

from ..loader import Augment, MultiCropLoader, Views
from ..losses import instance_loss
from ..models import Normalize, create_backbone, feature_dim, init_head

WAYS = {
    "plain": (0.0, 0.0),
    "label smoothing": (0.1, 0.0),
    "CutMix": (0.0, 0.5),
    "both": (0.1, 0.5),
}  # smoothing, alpha


def train(cfg, smoothing, alpha, images, epochs, batch_size, head_lr, progress):
    """One way. Returns arrays with an entry an epoch: away and visit (median gradient norms of classes out of and in the batch), often
    (share of the classes out of the batch that move by more than a twentieth of `visit`), floor (the norm that smoothing alone would
    give: eps / N times the batch's mean feature), loss, p (median probability of a class out of the batch)."""
    torch.manual_seed(cfg.training.seed)
    size = cfg.model.image_size
    loader = MultiCropLoader(
        cfg.data.train,
        batch_size,
        cfg.data.num_workers,
        cfg.training.seed,
        alpha,
        [Views(1, size, (0.6, 1.0))],
        Augment(flip_prob=0.5, jitter_prob=0, grayscale_prob=0, blur_prob=0),
        rows=np.arange(images),
        drop_last=True,
    )
    backbone = create_backbone(cfg.model.name, size, 0.0, cfg.model.options)
    normalize, head = Normalize(pretraining=True), init_head(feature_dim(backbone), images)
    optimizer = torch.optim.AdamW(backbone.parameters(), lr=cfg.training.lr, weight_decay=cfg.training.weight_decay)
    result = {key: np.zeros(epochs) for key in ("away", "visit", "often", "floor", "loss", "p")}
    for epoch in range(epochs):
        seen = {key: [] for key in result}
        for (group,) in loader:
            z = backbone(normalize(group.images))
            logits = head(z)
            loss = instance_loss(logits, group.idx_a, group.idx_b, group.lam, smoothing)
            optimizer.zero_grad()
            head.zero_grad()
            loss.backward()
            norms = head.weight.grad.norm(dim=1)
            inside = torch.zeros(images, dtype=torch.bool)
            inside[group.idx_a] = True
            seen["away"].append(norms[~inside].median().item())
            seen["visit"].append(norms[inside].median().item())
            seen["often"].append((norms[~inside] > 0.05 * norms[inside].median()).float().mean().item())
            seen["floor"].append((0.1 / images * z.detach().mean(0)).norm().item())
            seen["loss"].append(loss.item())
            seen["p"].append(torch.softmax(logits.detach(), 1)[:, ~inside].mean(0).median().item())
            optimizer.step()
            with torch.no_grad():
                for parameter in head.parameters():
                    parameter -= head_lr * parameter.grad
            progress.update()
        for key, values in seen.items():
            result[key][epoch] = np.mean(values)
    return result


def updates(cfg, out, images=128, epochs=250, batch_size=16, head_lr=1.0):
    """Train the four ways and write updates.png and updates.json to the folder `out`. Returns {way: arrays of `train`}."""
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    with tqdm(total=len(WAYS) * epochs * (images // batch_size), unit="step", disable=None) as progress:
        result = {way: train(cfg, *how, images, epochs, batch_size, head_lr, progress) for way, how in WAYS.items()}
    figure = Figure(figsize=(14, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    often, share, sizes, loss = figure.subplots(1, 4)
    at = np.arange(1, epochs + 1)
    for color, (way, values) in enumerate(result.items()):
        often.plot(at, 100 * values["often"], label=way, color=f"C{color}")
        share.plot(at, values["away"] / values["visit"], label=way, color=f"C{color}")
        sizes.plot(at, values["away"], label=way, color=f"C{color}")
        loss.plot(at, values["loss"], label=way, color=f"C{color}")
    sizes.plot(at, result["label smoothing"]["floor"], "k:", linewidth=1, label="eps / N times the mean feature")
    share.set(
        yscale="log", xlabel="epoch", title="a class out of the batch moves this share\nof what one in the batch moves"
    )
    sizes.set(yscale="log", xlabel="epoch", title="gradient of a class\nout of the batch (median)")
    loss.set(xlabel="epoch", title="loss")
    often.set(
        ylim=(0, 105),
        xlabel="epoch",
        title="of the classes out of the batch, so many %\nmove by over 5 % of what one in it moves",
    )
    often.legend(fontsize=8)
    sizes.legend(fontsize=7)
    figure.savefig(out / "updates.png", dpi=110)
    content = {way: {key: values.tolist() for key, values in arrays.items()} for way, arrays in result.items()}
    (out / "updates.json").write_text(json.dumps(content, indent=1) + "\n")
    return result


def summary(result):
    """A Markdown table of the last epoch."""
    lines = [
        "| trained with | gradient of a class out of the batch | of one in it | share | classes that move by over 5 % of that | its probability | loss |",
        "|---|---|---|---|---|---|---|",
    ]
    for way, v in result.items():
        lines.append(
            f"| {way} | {v['away'][-1]:.2g} | {v['visit'][-1]:.2g} | {v['away'][-1] / v['visit'][-1]:.2%} | {v['often'][-1]:.0%} "
            f"| {v['p'][-1]:.2g} | {v['loss'][-1]:.2f} |"
        )
    floor = result["label smoothing"]["floor"][-1]
    return (
        "\n".join(lines)
        + f"\n\nWith smoothing and p_k = 0 the closed form gives {floor:.2g} for a class out of the batch.\n"
    )
