"""Portable Triton kernels of our own, for ops where FlagGems has none, or a slower or an unsafe one."""
