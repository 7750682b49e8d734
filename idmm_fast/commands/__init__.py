"""The commands: each has `main(argv)`, which the script of its name at the root and `idmm-fast` call."""
