"""The account of a conversion: splits, classes, images of each, what was left out and why."""

import sys
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from ..datasets import Split


def make_account(
    split: "Split", places: Sequence[int], skipped: Sequence[Mapping[str, str]], changed: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """What a conversion made of a split, as it stands in the sidecar.

    Args:
        split: What was converted.
        places: For each row, which image of the split it is.
        skipped: Images that could not be read, {"file", "reason"} each.
        changed: What was done to images beyond what their formats ask for, {"reason", "count", "first"} each.

    Returns:
        {"images_per_class": as many numbers as classes, "unlabelled": images without a label, "left_out" and "changed":
        lists of {"reason", "count", "first"}, "remarks": sentences on how the raw files were read}
    """
    labels = np.asarray(split.labels, np.int64)[list(places)]
    left_out = [dict(item) for item in split.left_out]
    if skipped:
        first = f"{skipped[0]['file']}: {skipped[0]['reason']}"
        left_out.append({"reason": "images that can't be read", "count": len(skipped), "first": first})
    return {
        "images_per_class": np.bincount(labels[labels >= 0], minlength=len(split.classes)).tolist(),
        "unlabelled": int((labels < 0).sum()),
        "left_out": left_out,
        "changed": [dict(item) for item in changed],
        "remarks": list(split.remarks),
    }


def account_lines(accounts: Mapping[str, Mapping[str, Any]], classes: Mapping[str, Sequence[str]]) -> list[str]:
    """The account of all splits of a conversion as lines for the terminal.

    Args:
        accounts: {split: what `make_account` returns}.
        classes: {split: names of the classes}.
    """
    lines = [f"  {split}: {_images(account, classes[split])}" for split, account in accounts.items()]
    seen: list[str] = []
    for account in accounts.values():
        said = [f"  {remark}" for remark in account["remarks"]]
        for what, items in (("left out", account["left_out"]), ("changed", account["changed"])):
            said += [f"  {what}: {item['count']:,} {item['reason']}; first {item['first']}" for item in items]
        seen += [line for line in said if line not in seen]  # what is of all splits together is said once
    return [printable(line) for line in lines + seen]


def _images(account: Mapping[str, Any], classes: Sequence[str]) -> str:
    """Images and classes of a split, in words."""
    counts = account["images_per_class"]
    text = f"{sum(counts) + account['unlabelled']:,} images"
    if account["unlabelled"]:
        text += f", {account['unlabelled']:,} of them without a label"
    if len(counts) > 1 and sum(counts):
        fewest, most = int(np.argmin(counts)), int(np.argmax(counts))
        text += f", {len(counts):,} classes of {counts[fewest]:,} ({classes[fewest]}) to {counts[most]:,} images"
        text += f" ({classes[most]})"
    elif counts:
        text += f", one class ({classes[0]})" if len(counts) == 1 else ""
    return text


def printable(text: str | Path) -> str:
    """A line with names of files or classes in it, so that any terminal takes it and it stays one line.

    Line ends and other control characters, what is no text, and letters that the terminal lacks are shown by their
    numbers.
    """
    line = "".join(c.encode("unicode_escape").decode() if _is_control(c) else c for c in str(text))
    line = line.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    encoding = sys.stdout.encoding or "utf-8"
    return line.encode(encoding, "backslashreplace").decode(encoding)


def _is_control(character: str) -> bool:
    """Whether it controls a terminal, ends a line, or is half a character: a surrogate that is no byte of a name."""
    kind = unicodedata.category(character)
    return kind in ("Cc", "Zl", "Zp") or (kind == "Cs" and not "\udc80" <= character <= "\udcff")
