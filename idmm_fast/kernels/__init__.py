"""The numba kernels: they import numpy, numba and each other alone."""
