"""The console command: `idmm-fast VERB ...`, or `python -m idmm_fast VERB ...`."""

import difflib
import sys
from collections.abc import Sequence
from importlib import import_module

from . import __version__
from .errors import Stopped

# verb: what it does, as this help says it; its module is commands/VERB.py
VERBS = {
    "convert": "images to .beton files, which training reads fast",
    "inspect": "what a folder or a .beton file holds, what is wrong with it, and how long training takes",
    "pretrain": "a network on images alone",
    "finetune": "a network with labels",
    "evaluate": "a network: nearest neighbours, a linear probe, the accuracy of its classifier",
    "predict": "the classes of new images",
    "embed": "every image as a vector",
    "export": "a network as ONNX, for other programs",
    "compare": "methods with each other, over datasets and seeds",
    "benchmark": "loader, loss and step on this machine",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that the first argument names.

    Raises:
        SystemExit: as the command ends; 1 for a word that is none.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    verb = arguments[0] if arguments else "--help"
    if verb in ("-h", "--help"):
        print(_help())
        return
    if verb == "--version":
        print(f"idmm-fast {__version__}")
        return
    if verb not in VERBS:
        near = difflib.get_close_matches(verb, VERBS, 1, 0.5)
        sys.exit(f"error: there is no '{verb}'.{f' Did you mean {near[0]}?' if near else ''}\n\n{_help()}")
    try:
        command = import_module(f"{__package__}.commands.{verb}")
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        sys.exit(Stopped.exit_code)
    command.main(arguments[1:], prog=f"idmm-fast {verb}")


def _help() -> str:
    """What --help prints."""
    width = max(map(len, VERBS))
    return "\n".join(
        [
            "idmm-fast VERB ...: from a folder of images to a network, and to the classes of new images.",
            "",
            *(f"  {verb.ljust(width)}  {what}" for verb, what in VERBS.items()),
            "",
            "The usual road:",
            "  idmm-fast inspect my_images",
            "  idmm-fast pretrain --config own --data my_images --out runs/mine",
            "  idmm-fast finetune --config own --data my_images --init runs/mine --out runs/mine_finetune",
            "  idmm-fast predict --checkpoint runs/mine_finetune --images new_images --out predictions.csv",
            "",
            "idmm-fast VERB --help lists the options of a verb.",
        ]
    )


if __name__ == "__main__":
    main()
