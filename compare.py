#!/usr/bin/env python
"""Compare methods over datasets and seeds: idmm_fast/commands/compare.py."""

from idmm_fast.commands.compare import main

if __name__ == "__main__":
    main()
