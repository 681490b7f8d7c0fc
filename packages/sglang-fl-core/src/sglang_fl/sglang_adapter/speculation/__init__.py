"""Speculative decoding in plain PyTorch, on platforms that run none of SGLang's kernels for it."""
