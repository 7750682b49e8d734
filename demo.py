#!/usr/bin/env python
"""Everything in one go, on 2,040 photographs: convert, pretrain without labels, fine-tune with 200 labels, report.

Pretraining is by the paper's recipe and by the recommended one, for the same time. Less than 10 minutes on 2 cores.

python demo.py                                    # what is done is not done again; a stopped demo resumes
python demo.py --out runs/quick --seeds 2 --training.minutes=0.1   # of every training
"""

import argparse
import sys
from collections.abc import Sequence

from idmm_fast.cli import run
from idmm_fast.config import evaluate, finetune, keys, load_config, load_yaml, overrides, pretrain

PRETRAIN, FINETUNE = "rn_configs/demo.yaml", "rn_configs/finetune/demo.yaml"
RECIPE = "rn_configs/methods/instance_muon.yaml"


def check(given: Sequence[str]) -> None:
    """Raise ConfigError for a file or an argument that can't be used, before anything slow is imported."""
    everything = [key for part in (pretrain, finetune, evaluate) for key in keys(part.SCHEMA)]
    values = overrides(everything, given)
    for part, path in ((pretrain, PRETRAIN), (finetune, FINETUNE), (evaluate, FINETUNE)):
        load_config(part.SCHEMA, path, values, everything)
    load_yaml(pretrain.SCHEMA, RECIPE, everything)


def demo(argv: Sequence[str]) -> None:
    """Run what the arguments ask for, and print the report's table."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="--section.key=value sets a key of train_idmm.py, finetune.py or evaluate.py, wherever it exists.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--out", default="runs/demo", metavar="DIR", help="folder of the runs and the report (default: runs/demo)"
    )
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="how many seeds, at least 2 (default: 3)")
    args, given = parser.parse_known_args(argv)
    if args.seeds < 2:
        parser.error("--seeds is at least 2: one run has no spread")
    check(given)

    from idmm_fast.studies.demo import run_demo, table  # torch, which takes seconds, only for what is to be run

    report = run_demo(PRETRAIN, RECIPE, FINETUNE, args.out, args.seeds, given)
    encoding = sys.stdout.encoding or "utf-8"
    print("\n" + table(report).encode(encoding, "replace").decode(encoding))
    print(f"report: {args.out}/report.md and report.png ({report['minutes']} minutes)")


def main(argv: Sequence[str] | None = None) -> None:
    """The script."""
    run(demo, argv, if_stopped=" (`make demo` does that itself)")


if __name__ == "__main__":
    main()
