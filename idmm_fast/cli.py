"""What the commands share: errors become a message and an exit code, here and nowhere else; the head of their help."""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any

from .errors import IdmmError, Stopped

# Beside IdmmError: what the package raises by Python's own names, with a message for the user.
_EXPECTED = (IdmmError, FloatingPointError, MemoryError, OSError, ValueError)


def run(script: Callable[[list[str]], int | None], argv: Sequence[str] | None = None, if_stopped: str = "") -> None:
    """Run a script's work and exit as its outcome asks.

    Args:
        script: takes the arguments; what it returns, if anything, is the exit code.
        argv: the arguments, None for those of the process.
        if_stopped: what is added to the message of work that a signal has ended.

    Raises:
        SystemExit: with `error: MESSAGE` for an error that the user can mend, or with an exit code that is not 0.
    """
    try:
        code = script(list(sys.argv[1:] if argv is None else argv))
    except Stopped as stopped:
        print(f"{stopped}{if_stopped}", file=sys.stderr)
        sys.exit(stopped.exit_code)
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(Stopped.exit_code)
    except _EXPECTED as error:
        sys.exit(f"error: {error}")
    if code:
        sys.exit(code)


def help_head(doc: str | None, script: str, prog: str) -> str:
    """The head of a command's help, with its examples as they are typed where it was called.

    Args:
        doc: the head, with examples of the script at the root and of configurations by their paths.
        script: the script, "python NAME.py".
        prog: how the command was called: `script`, or "idmm-fast VERB", which finds configurations by name.
    """
    doc = doc or ""
    if prog == script:
        return doc
    verb, file = prog.partition(" ")[2], script.partition(" ")[2]
    doc = doc.replace(script, prog).replace(f" {file} ", f" -m idmm_fast {verb} ")  # the latter: torchrun's
    return re.sub(r"rn_configs/(?:finetune/)?([\w/]+)\.yaml", r"\1", doc)


def command_parser(doc: str | None, script: str, prog: str, **options: Any) -> argparse.ArgumentParser:
    """The parser of a command whose help begins as `help_head` says, for the same arguments.

    Args:
        options: further arguments of argparse.ArgumentParser.
    """
    return argparse.ArgumentParser(
        prog=prog,
        description=help_head(doc, script, prog),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        **options,
    )
