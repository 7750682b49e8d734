#!/usr/bin/env python
"""Predict the classes of new images with a fine-tuned network: idmm_fast/commands/predict.py."""

from idmm_fast.commands.predict import main

if __name__ == "__main__":
    main()
