"""Sweeps: methods compared over datasets, seeds and budgets, and the page that tells the results."""
