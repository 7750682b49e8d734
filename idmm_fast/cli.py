"""What the scripts at the root share: errors become a message and an exit code, here and nowhere else."""

import sys
from collections.abc import Callable, Sequence

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
    except _EXPECTED as error:
        sys.exit(f"error: {error}")
    if code:
        sys.exit(code)
