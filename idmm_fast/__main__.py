"""The console command: `idmm-fast VERB ...`, or `python -m idmm_fast VERB ...`."""

import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from . import __version__

# verb: what it does, as this help says it; its module is commands/VERB.py
_KNOWN = {
    "convert": "images to .beton files, which training reads fast",
    "inspect": "what a folder or a .beton file holds, and what is wrong with it",
    "pretrain": "a network on images alone",
    "finetune": "a network with labels",
    "evaluate": "the features of a network, by nearest neighbours and a linear probe",
    "predict": "the classes of new images",
    "embed": "every image as a vector",
    "export": "a network as ONNX, for other programs",
    "compare": "methods with each other, over datasets and seeds",
    "benchmark": "loader, loss and step on this machine",
}
VERBS = {verb: what for verb, what in _KNOWN.items() if (Path(__file__).parent / "commands" / f"{verb}.py").is_file()}


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that the first argument names.

    Raises:
        SystemExit: as the command ends; 2 for a word that is none.
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
        sys.exit(f"error: there is no '{verb}'.\n\n{_help()}")
    import_module(f"{__package__}.commands.{verb}").main(arguments[1:])


def _help() -> str:
    """What --help prints."""
    width = max(map(len, VERBS))
    return "\n".join(
        [
            "idmm-fast VERB ...: from a folder of images to a network, and to the classes of new images.",
            "",
            *(f"  {verb.ljust(width)}  {what}" for verb, what in VERBS.items()),
            "",
            "idmm-fast VERB --help lists the options of a verb.",
        ]
    )


if __name__ == "__main__":
    main()
