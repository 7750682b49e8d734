#!/usr/bin/env python
"""Convert a dataset to .beton files: idmm_fast/commands/convert.py."""

from idmm_fast.commands.convert import main

if __name__ == "__main__":
    main()
