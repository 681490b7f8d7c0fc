"""Serve a tiny model, made on the spot, with the real SGLang and sglang-fl."""
