#!/usr/bin/env python
"""Look at images before anything is trained on them: idmm_fast/commands/inspect.py."""

from idmm_fast.commands.inspect import main

if __name__ == "__main__":
    main()
