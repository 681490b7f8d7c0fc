"""A plugin of SGLang that gives layers without a window a temperature by position, which only Grok's have."""

from typing import Any

#: Tokens with more than so many before them have one.
LENGTH = 8


def register() -> None:
    """Have each layer made so."""
    from sglang.srt.layers.radix_attention import RadixAttention

    own = RadixAttention.__init__

    def made(self: Any, *args: Any, **kwargs: Any) -> None:
        own(self, *args, **kwargs)
        if self.sliding_window_size < 0:
            self.xai_temperature_len = LENGTH

    RadixAttention.__init__ = made
