"""A picture of one augmented batch, with its CutMix boxes."""

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle


def plot_batch(loader, path, epoch=0, images=6):
    """Write a PNG: a row for each of the first images of a batch, a column for each view, CutMix boxes outlined.

    The views are those that training sees in `epoch`; the batch is the one of its first twenty that is mixed most. The
    title of a column says which group it belongs to.
    """
    size = loader.local_rows(loader.indices, 0)[0].size
    full = max(1, min(20, loader.indices.size // loader.global_batch_len(0)))
    mixed = [min(1 - m.lam[0] for m in loader.decoder.sample_cutmix(epoch, step, size)) for step in range(full)]
    step = int(np.argmax(mixed))
    loader.load_state_dict({"epoch": epoch, "step": step})
    iterator = iter(loader)
    batch = next(iterator)
    iterator.close()
    loader.set_epoch(epoch)
    shown = min(images, size)
    mixes = loader.decoder.sample_cutmix(epoch, step, size)
    columns = sum(v.count for v in loader.views)
    figure = Figure(figsize=(1.5 * columns, 1.5 * shown + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(shown, columns, squeeze=False)
    column = 0
    for g, (spec, group, mix) in enumerate(zip(loader.views, batch, mixes)):
        for view in range(spec.count):
            for b in range(shown):
                axis, row = axes[b, column], view * size + b
                axis.imshow(
                    np.ascontiguousarray(group.images[row].permute(1, 2, 0).cpu().numpy()), interpolation="nearest"
                )
                axis.set_xticks([])
                axis.set_yticks([])
                top, left, bottom, right = mix.box[row]
                if bottom > top and right > left:
                    axis.add_patch(
                        Rectangle(
                            (left - 0.5, top - 0.5),
                            right - left,
                            bottom - top,
                            fill=False,
                            edgecolor="red",
                            linewidth=1.2,
                        )
                    )
                axis.set_xlabel(f"{group.idx_a[row]} | {group.idx_b[row]}", fontsize=7, labelpad=1)
            axes[0, column].set_title(f"{'ABCDEFGH'[g % 8]}{view + 1}  λ={mix.lam[view * size]:.2f}", fontsize=9)
            column += 1
    figure.suptitle(
        "One batch: a row an image, a column a view. Red: the CutMix box. Below: rows outside | inside the box",
        fontsize=9,
    )
    figure.savefig(path, dpi=110)
