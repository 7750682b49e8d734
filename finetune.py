#!/usr/bin/env python
"""Fine-tune a vision transformer with labels: idmm_fast/commands/finetune.py."""

from idmm_fast.commands.finetune import main

if __name__ == "__main__":
    main()
