"""The native kernels: one file for each op, of its name."""
