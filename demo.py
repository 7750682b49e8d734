#!/usr/bin/env python
"""Everything in one go, on 2,040 photographs: convert, pretrain without labels, fine-tune with 200, report. About 10 minutes on 2 cores.

python demo.py                                    # what is done already is not done again; a stopped demo goes on
python demo.py --out runs/quick --seeds 2 --training.epochs=2
"""

import argparse
import sys


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--out", default="runs/demo", metavar="DIR", help="folder of the runs and the report (default: runs/demo)"
    )
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="how many seeds, at least 2 (default: 3)")
    args, overrides = parser.parse_known_args(argv)
    if args.seeds < 2:
        parser.error("--seeds is at least 2: one run has no spread")

    from idmm_fast.beton import BetonError, WriteError
    from idmm_fast.config import ConfigError
    from idmm_fast.datasets import DatasetError
    from idmm_fast.loader import LoaderError
    from idmm_fast.studies.demo import run_demo, table
    from idmm_fast.train.signals import Interrupted

    try:
        report = run_demo("rn_configs/demo.yaml", "rn_configs/finetune/demo.yaml", args.out, args.seeds, overrides)
    except Interrupted as stopped:
        print(f"{stopped} (`make demo` does that itself)", file=sys.stderr)
        sys.exit(stopped.exit_code)
    except (
        BetonError,
        ConfigError,
        DatasetError,
        LoaderError,
        WriteError,
        OSError,
        FloatingPointError,
        ValueError,
    ) as error:
        sys.exit(f"error: {error}")
    encoding = sys.stdout.encoding or "utf-8"
    print("\n" + table(report).encode(encoding, "replace").decode(encoding))
    print(f"report: {args.out}/report.md and report.png ({report['minutes']} minutes)")


if __name__ == "__main__":
    main()
