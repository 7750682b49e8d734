#!/usr/bin/env python
"""Pretrain a vision transformer on images alone, with IDMM.

python train_idmm.py --config rn_configs/pets.yaml
python train_idmm.py --config rn_configs/flowers.yaml --training.epochs=100 --logging.run_dir=runs/short
torchrun --nproc-per-node 2 train_idmm.py --config rn_configs/pets.yaml      # on two GPUs, or two parts of a CPU
"""

import sys


def main(argv=None):
    from idmm_fast.beton import BetonError
    from idmm_fast.config import ConfigError, keys, parse
    from idmm_fast.evaluate.frozen import OnlineEvaluation
    from idmm_fast.loader import LoaderError
    from idmm_fast.runtime.distributed import is_main_process
    from idmm_fast.train import finetuning as finetune
    from idmm_fast.train.pretraining import SCHEMA, pretrain
    from idmm_fast.train.signals import Interrupted

    try:
        cfg = parse(
            SCHEMA, sys.argv[1:] if argv is None else argv, __doc__, others={"finetune.py": keys(finetune.SCHEMA)}
        )
        folder = pretrain(cfg, OnlineEvaluation(cfg))
    except Interrupted as stopped:
        print(stopped, file=sys.stderr)
        sys.exit(stopped.exit_code)
    except (ConfigError, BetonError, LoaderError, FloatingPointError, MemoryError, OSError, ValueError) as error:
        sys.exit(f"error: {error}")
    if not is_main_process():
        return
    if cfg.training.max_steps:
        print(
            f"{folder}: a trial of at most {cfg.training.max_steps} steps, as training.max_steps says; no weights were written"
        )
    else:
        print(
            f"done: {folder} ({', '.join(n for n in ('backbone.safetensors', 'metrics.jsonl', 'crops.png', 'curves.png') if (folder / n).exists())})"
        )


if __name__ == "__main__":
    main()
