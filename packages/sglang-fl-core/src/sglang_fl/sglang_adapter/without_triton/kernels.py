"""The two kernels of the causal convolution, as methods of an object on which each can be replaced."""

from typing import Any

from sglang_fl.ops import OPS

__all__ = ["CausalConvolution"]


class CausalConvolution:
    """Convolves by the references, until layer 2 puts what it chose in the place of a method.

    SGLang's backends call functions of their modules instead. These functions call this object's methods,
    with the arguments of the two ops.
    """

    def prefill(self, *arguments: Any) -> Any:
        """Compute ``causal_conv1d_fn``."""
        return OPS["causal_conv1d_fn"].reference(*arguments)

    def update(self, *arguments: Any) -> Any:
        """Compute ``causal_conv1d_update``."""
        return OPS["causal_conv1d_update"].reference(*arguments)
