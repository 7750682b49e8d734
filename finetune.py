#!/usr/bin/env python
"""Fine-tune a vision transformer with labels, from a pretraining or from random weights.

    python finetune.py --config rn_configs/pets_finetune.yaml --init runs/pets_deit_tiny
    python finetune.py --config rn_configs/pets_finetune.yaml --logging.run_dir=runs/pets_scratch

--init NAME is short for --model.init=NAME: the run folder of a pretraining, a checkpoint, or a .safetensors file.
"""

import sys


def main(argv=None):
    from idmm_fast.beton import BetonError
    from idmm_fast.config import ConfigError, parse
    from idmm_fast.loader import LoaderError
    from idmm_fast.train.distributed import talks
    from idmm_fast.train.finetune import SCHEMA, finetune
    from idmm_fast.train.run import Interrupted

    try:
        cfg = parse(SCHEMA, sys.argv[1:] if argv is None else argv, __doc__, aliases={"init": "model.init"})
        result = finetune(cfg)
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(stopped.exit_code)
    except (ConfigError, BetonError, LoaderError, FloatingPointError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    if not talks():
        return
    if not result:
        print(f"{cfg.logging.run_dir}: stopped after {cfg.training.max_steps} steps, as training.max_steps says")
        return
    print(
        f"{cfg.logging.run_dir}: top-1 {result['top1']:.2f} %, top-5 {result['top5']:.2f} % on {result['test_images']} test images"
    )


if __name__ == "__main__":
    main()
