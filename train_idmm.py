#!/usr/bin/env python
"""Pretrain a vision transformer on images alone: idmm_fast/commands/pretrain.py."""

from idmm_fast.commands.pretrain import main

if __name__ == "__main__":
    main()
