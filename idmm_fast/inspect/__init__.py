"""What a folder of images or its betons hold, before anything is trained on them, and what would fit them."""

from .look import TINY_CLASS, Inspection, Seen, duplicates, inspect
from .report import report_lines
from .sheets import write_sheets
from .suggest import Command, Suggestion, run_name, suggest

__all__ = [
    "TINY_CLASS",
    "Command",
    "Inspection",
    "Seen",
    "Suggestion",
    "duplicates",
    "inspect",
    "report_lines",
    "run_name",
    "suggest",
    "write_sheets",
]
