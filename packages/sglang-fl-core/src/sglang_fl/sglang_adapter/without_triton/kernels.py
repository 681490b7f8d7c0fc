"""The kernels of linear attention that SGLang keeps in no object, as methods that can be replaced."""

from typing import Any

from sglang_fl.ops import OPS

__all__ = ["CausalConvolution", "StateSpace"]


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


class StateSpace:
    """Computes Mamba-2 by the references, likewise."""

    def scan(self, *arguments: Any) -> Any:
        """Compute ``mamba_chunk_scan_combined``."""
        return OPS["mamba_chunk_scan_combined"].reference(*arguments)

    def update(self, *arguments: Any) -> Any:
        """Compute ``selective_state_update``."""
        return OPS["selective_state_update"].reference(*arguments)
