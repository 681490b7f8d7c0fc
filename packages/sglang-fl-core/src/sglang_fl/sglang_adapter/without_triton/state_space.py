"""SGLang's functions of Mamba-2, with its signatures, over the object that layer 2 knows."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from sglang_fl.errors import UnsupportedError
from sglang_fl.sglang_adapter.without_triton.kernels import StateSpace

__all__ = ["scan_by", "state_update_by"]


def scan_by(space: StateSpace) -> Callable[..., tuple[None, Tensor, None]]:
    """Return ``mamba_chunk_scan_combined`` as SGLang's mixer calls it."""

    def mamba_chunk_scan_combined(
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        *,
        D: Tensor,
        dt_bias: Tensor,
        initial_states: Tensor | None,
        cu_seqlens: Tensor,
        out: Tensor,
        state_dtype: Any,
        z: Tensor | None = None,
        dt_limit: tuple[float, float] = (0.0, float("inf")),
        track_seq_idx: Tensor | None = None,
        **given: Any,
    ) -> tuple[None, Tensor, None]:
        if z is not None or tuple(dt_limit) != (0.0, float("inf")) or track_seq_idx is not None:
            raise UnsupportedError(
                "mamba_chunk_scan_combined with a gate, a limit of its steps, or states in between has no "
                "plain PyTorch path"
            )
        if initial_states is None:
            shape = (len(cu_seqlens) - 1, *x.shape[2:], B.shape[3])
            initial_states = x.new_zeros(shape, dtype=state_dtype)
        y, states = space.scan(x, dt, A, B, C, D, dt_bias, initial_states, cu_seqlens)
        out.copy_(y)
        return None, states, None

    return mamba_chunk_scan_combined


def state_update_by(space: StateSpace) -> Callable[..., None]:
    """Return ``selective_state_update`` as SGLang's mixer calls it: per head what it expands to elements."""

    def selective_state_update(
        state: Tensor,
        x: Tensor,
        dt: Tensor,
        A: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor,
        *,
        dt_bias: Tensor,
        state_batch_indices: Tensor,
        out: Tensor,
        z: Tensor | None = None,
        disable_state_update: bool = False,
        **given: Any,
    ) -> None:
        expanded = (dt.stride(-1), A.stride(-1), A.stride(-2), D.stride(-1), dt_bias.stride(-1))
        if z is not None or disable_state_update or any(expanded):
            raise UnsupportedError(
                "selective_state_update with a gate, for drafted tokens, or with steps that differ within a "
                "head has no plain PyTorch path"
            )
        per_head = (dt[..., 0], A[:, 0, 0], B, C, D[:, 0], dt_bias[:, 0])
        out.copy_(space.update(state, x, *per_head, state_batch_indices))

    return selective_state_update
