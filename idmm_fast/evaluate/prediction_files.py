"""Predictions as CSV, JSON or Parquet, written whole or not at all."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..config import ConfigError
from ..files import PREDICTION_ENDINGS, check_target, replacing
from .predict import Predictions


def check_table(out: str | Path) -> None:
    """Refuse a file that predictions can't be written to, before the work for it is done.

    Raises:
        ConfigError: another ending, or a package is missing.
        OSError: see `files.check_target`.
    """
    if Path(out).suffix.lower() not in PREDICTION_ENDINGS:
        raise ConfigError(
            f"{out}: predictions are written as {', '.join(PREDICTION_ENDINGS)}; the ending of the name decides"
        )
    if Path(out).suffix.lower() == ".parquet" and find_spec("pyarrow") is None:
        raise ConfigError(f"{out}: Parquet needs one more package: pip install pyarrow. Or write .csv or .json.")
    check_target(out)


def as_rows(found: Predictions) -> Iterator[dict[str, Any]]:
    """For each file {"file", "label", "probability", "top": [(label, probability), ...], "error"}.

    "label" and "probability" are those of the likeliest class. Of a damaged file they are None and "top" is [], and
    "error" says why; it is None otherwise.
    """
    for k, file in enumerate(found.files):
        pairs = zip(found.labels[k].tolist(), found.probabilities[k].tolist()) if k not in found.damaged else ()
        top = [(found.label_names[label], probability) for label, probability in pairs]
        label, probability = top[0] if top else (None, None)
        yield {"file": file, "label": label, "probability": probability, "top": top, "error": found.damaged.get(k)}


def write_predictions(found: Predictions, out: str | Path) -> None:
    """Write predictions as the ending of `out` says; see docs/predict.md for the columns.

    Raises:
        ConfigError: another ending, or a package is missing.
        OSError: the file can't be written.
    """
    check_table(out)
    write = {".csv": _write_csv, ".json": _write_json, ".parquet": _write_parquet}[Path(out).suffix.lower()]
    with replacing(out) as draft:
        write(found, draft)


def _columns(found: Predictions) -> list[str]:
    further = [f"{name}_{k}" for k in range(2, found.labels.shape[1] + 1) for name in ("label", "probability")]
    return ["file", "label", "probability", *further, "error"]


def _cells(row: dict[str, Any], width: int) -> list[Any]:
    """The values of a row in the order of the columns."""
    values = [value for pair in row["top"] for value in pair]
    return [row["file"], *values, *[None] * (width - 2 - len(values)), row["error"]]


def _write_csv(found: Predictions, path: Path) -> None:
    columns = _columns(found)
    # surrogateescape: names that are no UTF-8 keep their own bytes.
    with open(path, "w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        for row in as_rows(found):
            writer.writerow([f"{x:.6g}" if isinstance(x, float) else x for x in _cells(row, len(columns))])


def _write_json(found: Predictions, path: Path) -> None:
    content: dict[str, list] = {"label_names": found.label_names, "predictions": [], "damaged": []}
    for row in as_rows(found):
        if row["error"] is None:
            top = [{"label": label, "probability": round(p, 6)} for label, p in row["top"]]
            content["predictions"].append({"file": row["file"], **top[0], "top": top})
        else:
            content["damaged"].append({"file": row["file"], "reason": row["error"]})
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _write_parquet(found: Predictions, path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    def text(value: str | None) -> str | None:
        return None if value is None else os.fsencode(value).decode("utf-8", "backslashreplace")

    names = _columns(found)
    kinds = [pyarrow.float32() if name.startswith("probability") else pyarrow.string() for name in names]
    columns = list(zip(*(_cells(row, len(names)) for row in as_rows(found))))
    values = [[text(x) for x in c] if kind == pyarrow.string() else c for c, kind in zip(columns, kinds)]
    arrays = [pyarrow.array(v, kind) for v, kind in zip(values, kinds)]
    pyarrow.parquet.write_table(pyarrow.Table.from_arrays(arrays, names), str(path))
