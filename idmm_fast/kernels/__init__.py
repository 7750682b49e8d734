"""The numba kernels: they import numpy, numba and each other alone.

They have no annotations, since numba infers the types of their arguments; docstrings tell dtypes and shapes.
"""
