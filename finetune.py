#!/usr/bin/env python
"""Fine-tune a vision transformer with labels, from a pretraining or from random weights.

    python finetune.py --config rn_configs/pets_finetune.yaml --init runs/pets_deit_tiny
    python finetune.py --config rn_configs/pets_finetune.yaml --logging.run_dir=runs/pets_scratch
    python finetune.py --config rn_configs/pets_finetune.yaml --init runs/pets_deit_tiny --stages

--init NAME is short for --model.init=NAME: the run folder of a pretraining, a checkpoint, or a .safetensors file.
--stages: the stages of progressive.stages one after another, each from the end of the one before it: 800 epochs at 224 pixels, then 100 at 448. Called again,
it goes on where it was stopped.
"""

import sys


def main(argv=None):
    from idmm_fast.beton import BetonError
    from idmm_fast.config import ConfigError, keys, parse
    from idmm_fast.config.finetune import SCHEMA
    from idmm_fast.loader import LoaderError
    from idmm_fast.runtime.distributed import is_main_process
    from idmm_fast.train import pretraining as pretrain
    from idmm_fast.train.finetuning import finetune
    from idmm_fast.train.signals import Interrupted
    from idmm_fast.train.stages import run_stages

    argv = list(sys.argv[1:] if argv is None else argv)
    stages = "--stages" in argv
    try:
        rest = [a for a in argv if a != "--stages"]
        cfg = parse(
            SCHEMA, rest, __doc__, aliases={"init": "model.init"}, others={"train_idmm.py": keys(pretrain.SCHEMA)}
        )
        results = run_stages(cfg) if stages else [finetune(cfg)]
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(stopped.exit_code)
    except (ConfigError, BetonError, LoaderError, FloatingPointError, MemoryError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    if not is_main_process():
        return
    for k, result in enumerate(results, 1):
        folder = f"{cfg.logging.run_dir}/stage_{k}" if stages else cfg.logging.run_dir
        if result:
            print(
                f"{folder}: top-1 {result['top1']:.2f} %, top-5 {result['top5']:.2f} % on {result['test_images']} test images"
            )
        else:
            print(
                f"{folder}: a trial of at most {cfg.training.max_steps} steps, as training.max_steps says; no weights were written"
            )


if __name__ == "__main__":
    main()
