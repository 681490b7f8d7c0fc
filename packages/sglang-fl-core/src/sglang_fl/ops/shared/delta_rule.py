"""What the ops of the gated delta rule share: the recurrence, its gates, how results are compared."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sglang_fl.errors import ContractError
from sglang_fl.ops.op import Arguments, Outputs
from sglang_fl.ops.shared.overlap import shares_memory
from sglang_fl.ops.shared.runs import sequences

__all__ = [
    "beside_peak",
    "check_gates",
    "check_runs",
    "check_states",
    "gates",
    "recur",
    "unit_rows",
    "without_padding",
]

#: Under the root of the l2 norm, as in SGLang's ``l2norm_fwd``.
L2_EPS = 1e-6


def check_states(op: str, states: Tensor) -> None:
    """Raise ``ContractError`` where two states lie in the same memory: both are written."""
    if shares_memory(states):
        raise ContractError(
            f"{op}: elements of initial_state {tuple(states.shape)}, strides {states.stride()}, share memory"
        )


def check_runs(
    op: str,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    initial_state: Tensor,
    initial_state_indices: Tensor,
    cu_seqlens: Tensor,
) -> None:
    """Raise ``ContractError`` where runs of tokens, packed in one row, and a pool of states do not fit."""
    check_states(op, initial_state)
    lists = (initial_state_indices, cu_seqlens)
    if any(x.dim() != 4 for x in (q, k, v, initial_state)) or any(x.dim() != 1 for x in lists):
        raise ContractError(
            f"{op}: q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)} and initial_state "
            f"{tuple(initial_state.shape)} need four axes, initial_state_indices "
            f"{tuple(initial_state_indices.shape)} and cu_seqlens {tuple(cu_seqlens.shape)} one"
        )
    tokens, heads, keys = k.shape[1:]
    values = v.shape[2:]
    if q.shape != k.shape or q.shape[0] != 1 or v.shape[:2] != (1, tokens) or values[0] % heads:
        raise ContractError(f"{op}: q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)} do not fit")
    if initial_state.shape[1:] != (*values, keys) or len(cu_seqlens) != len(initial_state_indices) + 1:
        raise ContractError(
            f"{op}: initial_state {tuple(initial_state.shape)} is not a pool of states {(*values, keys)}, "
            "or there is not one index for each sequence"
        )


def check_gates(
    op: str, tokens: int, value_heads: int, A_log: Tensor, a: Tensor, dt_bias: Tensor, b: Tensor
) -> None:
    """Raise ``ContractError`` where there is not one gate for each value head of each token."""
    of_token, of_head = (tokens, value_heads), (value_heads,)
    if (a.shape, b.shape) != (of_token, of_token) or (A_log.shape, dt_bias.shape) != (of_head, of_head):
        shapes = ", ".join(str(tuple(tensor.shape)) for tensor in (A_log, a, dt_bias, b))
        raise ContractError(
            f"{op}: A_log, a, dt_bias and b, {shapes}, are not for {value_heads} value heads "
            f"of {tokens} tokens"
        )


def unit_rows(x: Tensor) -> Tensor:
    """Scale the last axis to unit length."""
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + L2_EPS)


def gates(A_log: Tensor, a: Tensor, dt_bias: Tensor, b: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the logarithm of the decay and the learning rate of each value head, in ``dtype``.

    Parameters
    ----------
    A_log, dt_bias : Tensors, (HV,)
    a, b : Tensors, (..., HV)
    """
    step = F.softplus(a.to(dtype) + dt_bias.to(dtype), threshold=20.0)
    return -A_log.to(dtype).exp() * step, torch.sigmoid(b.to(dtype))


def recur(state: Tensor, q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor) -> tuple[Tensor, Tensor]:
    """Take one step of the gated delta rule in each value head.

    ``S *= exp(g); S += beta (v - S k) k^T; o = S q``. Source: Yang et al., "Gated Delta Networks", 2024,
    equation 10.

    Parameters
    ----------
    state : Tensor, (HV, V, K)
    q, k : Tensors, (H, K); HV is a multiple of H, and neighbouring value heads share one
    v : Tensor, (HV, V)
    g, beta : Tensors, (HV,); g is the logarithm of the decay

    Returns
    -------
    (state, o) : Tensors, (HV, V, K) and (HV, V)
    """
    groups = v.shape[0] // k.shape[0]
    q, k = (x.repeat_interleave(groups, dim=0).unsqueeze(-1) for x in (q, k))
    state = state * g.exp()[:, None, None]
    update = beta[:, None, None] * (v.unsqueeze(-1) - state @ k)
    state = torch.baddbmm(state, update, k.transpose(-1, -2))
    return state, (state @ q).squeeze(-1)


def without_padding(outputs: Outputs, arguments: Arguments) -> tuple[Tensor, ...]:
    """Set to zero what belongs to no sequence, or to one with a negative state index; there it is left open.

    The first result has its tokens in axis 1 of four, or in axis 0 of three.
    """
    results = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
    o, *rest = results
    o = o.clone()
    tokens = o[0] if o.dim() == 4 else o
    indices = arguments["initial_state_indices"]
    bounds = arguments.get("cu_seqlens")
    if bounds is None:
        tokens[(indices < 0).to(tokens.device)] = 0
    else:
        tokens[: int(bounds[0])] = 0
        for first, last, index in sequences(bounds, indices):
            if index < 0:
                tokens[first:last] = 0
        tokens[int(bounds[-1]) :] = 0
    return (o, *rest)


def beside_peak(result: Tensor, dim: tuple[int, ...] = (-2, -1)) -> Tensor:
    """Return for each element the largest finite one along these axes, the last two by default.

    The recurrence subtracts what the state already holds, so an element may be small beside the terms it
    is made of; those are of the size of the largest ones.
    """
    if not result.numel():
        return result
    finite = result.abs().nan_to_num(0.0, posinf=0.0)
    return finite.amax(dim=dim, keepdim=True).expand_as(result)
