"""How a classifier does, class by class: recall, precision, confusion, calibration; as numbers, pictures and a page."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support
from torch import nn

from ..convert import listed_files
from ..files import replacing, write_json, write_text
from ..plots.classification import plot_confusion, plot_mistakes
from ..runtime.device import Runtime
from .batches import EvaluationImages, evaluation_batches, report_skipped

BINS = 15  # of the calibration error, as in Guo et al. (arXiv 1706.04599)
_PICTURE_CLASSES = 60  # a confusion matrix of more classes is no picture


@dataclass(frozen=True)
class Classified:
    """What a classifier says of the images of a file.

    Attributes:
        rows: int64 (n,), their dataset rows.
        labels: int64 (n,), their true classes.
        probabilities: float32 (n, classes).
        names: of the classes.
    """

    rows: np.ndarray
    labels: np.ndarray
    probabilities: np.ndarray
    names: Sequence[str]


@torch.no_grad()
def classify(
    model: nn.Module, images: EvaluationImages, labels: np.ndarray, names: Sequence[str], runtime: Runtime
) -> Classified:
    """Classify the images of a file in this process. The model's mode (training or not) is kept.

    Args:
        model: from uint8 images (B, 3, S, S) to logits (B, classes), on the device of `runtime`.
        images: which images.
        labels: int64, by dataset row.
        names: of the classes.
        runtime: what the model runs on.

    Raises:
        LoaderError: an image is damaged and images.on_error is "raise", or all are.
    """
    was_training = model.training
    model.eval()
    rows, probabilities = [], []
    loader, batches = evaluation_batches(images, runtime)
    for pixels, idx in batches:
        with runtime.autocast():
            logits = model(pixels)
        probabilities.append(logits.float().softmax(1).cpu())
        rows.append(idx.cpu())
    model.train(was_training)
    report_skipped(images.path, loader.indices.size - sum(map(len, rows)), loader.indices.size)
    found = torch.cat(rows).numpy()
    return Classified(found, labels[found], torch.cat(probabilities).numpy(), names)


def measure(found: Classified) -> dict[str, Any]:
    """The numbers of a report.

    Returns:
        {"images", "top1", "top1_error", "most_frequent", "top5", "balanced_accuracy", "ece"}: "top1_error" is the
        standard error of "top1", "most_frequent" the share of that class; no "top5" of five classes or fewer. And
        "classes": for each class of which there are images {"name", "images", "predicted", "precision", "recall", "f1",
        "taken_for"}: "predicted" is how many images are taken for it, "taken_for" the class that it is most often
        mistaken for, or None. All but counts are percent.
    """
    labels, names, classes = found.labels, list(found.names), np.arange(len(found.names))
    order = np.argsort(-found.probabilities, axis=1, kind="stable")
    predicted = order[:, 0]
    precision, recall, f1, support = precision_recall_fscore_support(
        labels, predicted, labels=classes, average=None, zero_division=0
    )
    confusion = confusion_matrix(labels, predicted, labels=classes)
    wrong = confusion - np.diag(np.diag(confusion))
    by_class = [
        {
            "name": names[k],
            "images": int(support[k]),
            "predicted": int(confusion[:, k].sum()),
            "precision": 100 * float(precision[k]),
            "recall": 100 * float(recall[k]),
            "f1": 100 * float(f1[k]),
            "taken_for": names[int(wrong[k].argmax())] if wrong[k].any() else None,
        }
        for k in np.flatnonzero(support)
    ]
    right = float((predicted == labels).mean())
    top5 = {"top5": 100 * float((order[:, :5] == labels[:, None]).any(1).mean())} if len(names) > 5 else {}
    return {
        "images": int(labels.size),
        "top1": 100 * right,
        "top1_error": 100 * float(np.sqrt(right * (1 - right) / labels.size)),
        "most_frequent": 100 * float(support.max() / labels.size),
        **top5,
        "balanced_accuracy": 100 * float(recall[support > 0].mean()),
        "ece": 100 * expected_calibration_error(found.probabilities, labels),
        "classes": by_class,
    }


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """The mean distance of confidence and accuracy, over BINS equal bins of confidence, weighted by their images.

    Args:
        probabilities: float (n, classes).
        labels: int64 (n,).

    Returns:
        0..1; 0: of the images that the model is p sure of, the fraction p is right.
    """
    confidence, right = probabilities.max(1), probabilities.argmax(1) == labels
    bins = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    gaps = np.bincount(bins, right - confidence, BINS)  # of a bin: images x (accuracy - confidence)
    return float(np.abs(gaps).sum() / labels.size)


def write_report(
    found: Classified, images: EvaluationImages, folder: str | Path, title: str, train_images: int | None = None
) -> dict[str, Any]:
    """Write report.md, report.json, test_predictions.csv and the pictures, and return the numbers.

    Args:
        found: what the classifier said.
        images: of what.
        folder: where the files go; it is made.
        title: the head of the page.
        train_images: of the training whose curves.png is in the folder, how many images it had; None: of no training.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    numbers = measure(found)
    pictures = {}
    predicted = found.probabilities.argmax(1)
    if len(found.names) <= _PICTURE_CLASSES:
        confusion = confusion_matrix(found.labels, predicted, labels=np.arange(len(found.names)))
        plot_confusion(confusion, found.names, folder / "confusion.png")
        pictures["confusion.png"] = "Confusion: a row for each true class, in percent of its images"
    mistakes = np.flatnonzero(predicted != found.labels)
    mistakes = mistakes[np.argsort(-found.probabilities[mistakes, predicted[mistakes]], kind="stable")][:24]
    if mistakes.size:
        titles = [
            f"predicted ({100 * found.probabilities[k, predicted[k]]:.0f} %):\n{found.names[predicted[k]]}\n"
            f"true: {found.names[found.labels[k]]}"
            for k in mistakes
        ]
        plot_mistakes(images.path, found.rows[mistakes], titles, folder / "mistakes.png", max(images.size, 64))
        pictures["mistakes.png"] = "The most confident mistakes: the predicted class, and the true one"
    if train_images is not None:
        pictures["curves.png"] = "The training"
    for stale in {"confusion.png", "mistakes.png"} - pictures.keys():  # of a report that was here before
        (folder / stale).unlink(missing_ok=True)
    write_json(folder / "report.json", numbers)
    # Names that are no UTF-8 keep their bytes, as in predict's table.
    with replacing(folder / "test_predictions.csv") as draft:
        table = _table(found, listed_files(Path(images.path)))
        draft.write_text(table, encoding="utf-8", errors="surrogateescape")
    write_text(folder / "report.md", _page(numbers, title, pictures, train_images))
    return numbers


def _table(found: Classified, files: Sequence[str]) -> str:
    """The prediction of each image as CSV, by its row in the beton, and by its file where `files` has those of rows."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["row", *(["file"] if files else []), "true", "predicted", "probability"])
    for k in np.argsort(found.rows, kind="stable"):
        row, best = found.rows[k], int(found.probabilities[k].argmax())
        file = [files[row]] if files else []
        writer.writerow(
            [row, *file, found.names[found.labels[k]], found.names[best], f"{found.probabilities[k, best]:.6g}"]
        )
    return text.getvalue()


def _page(numbers: dict[str, Any], title: str, pictures: dict[str, str], train_images: int | None) -> str:
    """The page, in Markdown."""
    summary = {
        "top-1": "top1",
        "top-5": "top5",
        "share of the most frequent class": "most_frequent",
        "balanced accuracy (mean recall of the classes)": "balanced_accuracy",
        "calibration error (ECE, 15 bins)": "ece",
    }
    errors = {"top1": f"± {numbers['top1_error']:.2f}"}
    images = "1 test image" if numbers["images"] == 1 else f"{numbers['images']:,} test images"
    trained = "" if train_images is None else f", {train_images:,} training images"
    shown = title.encode("utf-8", "backslashreplace").decode()
    lines = [f"# {shown}", "", f"{images}{trained}.", "", "| | % | standard error |", "|---|---|---|"]
    lines += [f"| {name} | {numbers[k]:.2f} | {errors.get(k, '')} |" for name, k in summary.items() if k in numbers]
    lines += ["", "The classes, those found worst first:", ""]
    lines += [
        "| class | images | recall, % | precision, % | F1, % | most often taken for |",
        "|---|---|---|---|---|---|",
    ]
    for row in sorted(numbers["classes"], key=lambda row: row["recall"]):
        cells = [_cell(row["name"]), f"{row['images']:,}"]
        precision = f"{row['precision']:.1f}" if row["predicted"] else "-"
        cells += [f"{row['recall']:.1f}", precision, f"{row['f1']:.1f}"]
        lines.append("| " + " | ".join([*cells, _cell(row["taken_for"] or "")]) + " |")
    lines += ["", "Each image: [test_predictions.csv](test_predictions.csv)."]
    for file, what in pictures.items():
        lines += ["", f"{what}:", "", f"![{what}]({file})"]
    return "\n".join(lines) + "\n"


def _cell(name: str) -> str:
    """A name as a cell of a table holds it."""
    text = name.encode("utf-8", "backslashreplace").decode()
    return " ".join(text.replace("|", "\\|").split())
