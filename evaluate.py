#!/usr/bin/env python
"""Judge frozen features: weighted kNN (k 10 and 20), a linear probe, and a picture of nearest neighbours.

    python evaluate.py --checkpoint runs/pets_deit_tiny
    python evaluate.py --checkpoint runs/pets_deit_tiny --data data/dtd_train.beton --test data/dtd_test.beton
    python evaluate.py --config rn_configs/pets.yaml                     # random weights, to compare with

--checkpoint NAME (a run folder or a checkpoint in it) is short for --model.init=NAME; model and data are those of the run's
config.yaml where nothing else is said. --data and --test are short for --data.train and --data.test.
"""

import sys
from pathlib import Path


def main(argv=None):
    from idmm_fast.beton import BetonError
    from idmm_fast.config import ConfigError, keys, parse
    from idmm_fast.config.evaluate import SCHEMA
    from idmm_fast.evaluate.frozen import evaluate_frozen, run_config
    from idmm_fast.loader import LoaderError
    from idmm_fast.train import finetuning as finetune
    from idmm_fast.train import pretraining as pretrain

    argv = sys.argv[1:] if argv is None else argv
    try:
        cfg = parse(
            SCHEMA,
            [*run_config(argv), *argv],
            __doc__,
            aliases={"checkpoint": "model.init", "data": "data.train", "test": "data.test"},
            ignored=[*keys(pretrain.SCHEMA), *keys(finetune.SCHEMA)],
        )
        result = evaluate_frozen(cfg)
    except (ConfigError, BetonError, LoaderError, FileNotFoundError, ValueError) as error:
        sys.exit(f"error: {error}")
    print(
        "  ".join(
            f"{name} {value:.2f} %" if name != "images_skipped" else f"({value} images skipped)"
            for name, value in result.items()
        )
    )
    if cfg.logging.run_dir:
        print(f"picture: {Path(cfg.logging.run_dir) / 'neighbours.png'}")


if __name__ == "__main__":
    main()
