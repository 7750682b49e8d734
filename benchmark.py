#!/usr/bin/env python
"""Measure throughput: idmm_fast/commands/benchmark.py."""

from idmm_fast.commands.benchmark import main

if __name__ == "__main__":
    main()
