"""Serve a small model with the real SGLang and sglang-fl."""
