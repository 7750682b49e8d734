#!/usr/bin/env python
"""Evaluate frozen features: idmm_fast/commands/evaluate.py."""

from idmm_fast.commands.evaluate import main

if __name__ == "__main__":
    main()
