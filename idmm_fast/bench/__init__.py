"""Benchmarks, one file each; benchmark.py at the root runs them."""
