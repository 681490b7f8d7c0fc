"""Kernels that keep every case of their op and are wrong at an edge: ``<op>__<what is wrong>``.

The first ones are wrong in the same way for every op; the others are one of a kind.
"""

import inspect
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sglang_fl.ops import OPS, Op, Outputs, shares_memory, unshared
from wrong_kernels_attention import ATTENTION, kernels_of_attention, remembering

Arguments = dict[str, Any]
Call = Callable[[Arguments], Outputs]

#: Kernels that a case catches, because their edge is one; and those that are made for every op.
CASES: set[str] = set()
STRESS: set[str] = set()
FOR_EVERY_OP: set[str] = set()


def _add(op: Op, what: str, call: Call) -> None:
    """Add a kernel with the signature of an op, which is called with its arguments by name."""

    def kernel(*args: Any, **kwargs: Any) -> Outputs:
        return call(dict(op.signature.bind(*args, **kwargs).arguments))

    kernel.__name__ = f"{op}__{what}"
    kernel.__signature__ = op.signature  # type: ignore[attr-defined]
    globals()[kernel.__name__] = kernel


def _wrong(op_name: str, *, by_case: bool = False) -> Callable[[Call], Call]:
    """Add a function of an op's arguments under its own name."""

    def add(call: Call) -> Call:
        _add(OPS[op_name], call.__name__.lstrip("_"), call)
        if by_case:
            CASES.add(f"{op_name}__{call.__name__.lstrip('_')}")
        return call

    return add


def _mapped(outputs: Outputs, change: Callable[[Tensor], Tensor]) -> Outputs:
    if isinstance(outputs, Tensor):
        return change(outputs)
    return tuple(change(t) if t.is_floating_point() else t for t in outputs)


# For every op


def _spreads(op: Op, name: str) -> Call:
    """A number that is not finite in one row reaches all."""

    def call(given: Arguments) -> Outputs:
        if given.get(name) is None:
            return op.reference(**given)
        poison = 0 * given[name].float().sum()
        outputs = op.reference(**given)
        if outputs == ():  # then what it updates is all of its results
            for updated in op.updated(given):
                rows = op.written_rows(updated, given)
                given[updated][rows] = (given[updated][rows].float() + poison).to(given[updated].dtype)
        return _mapped(outputs, lambda t: t + poison.to(t.dtype))

    return call


def _forgets_far(op: Op, name: str, axis: int) -> Call:
    """The last row is read as zeros where its offset does not fit in 32 bits."""

    def call(given: Arguments) -> Outputs:
        value = given.get(name)
        has_rows = value is not None and value.dim() > axis and value.shape[axis] > 0
        if has_rows and (value.shape[axis] - 1) * value.stride(axis) >= 2**31:
            given[name] = value.clone()
            given[name].select(axis, -1).zero_()
        return op.reference(**given)

    return call


def _takes_once(op: Op, name: str, axis: int) -> Call:
    """Of rows that are one in memory only the first is read."""

    def call(given: Arguments) -> Outputs:
        value = given.get(name)
        if value is not None and value.dim() > 1 and value.stride(axis) == 0 and value.shape[axis] > 1:
            given[name] = value.clone()
            given[name].narrow(axis, 1, value.shape[axis] - 1).zero_()
        return op.reference(**given)

    return call


def _dense_where_it_overlaps(op: Op, name: str, axis: int) -> Call:
    """Rows that overlap are taken for rows one after the other."""

    def call(given: Arguments) -> Outputs:
        value = given.get(name)
        has_rows = value is not None and value.dim() > max(axis, 1) and value.shape[axis] > 1
        if has_rows and 0 < value.stride(axis) < value.select(axis, 0).numel():
            given[name] = value.clone()
            given[name].select(axis, 1).zero_()
        return op.reference(**given)

    return call


for _op in OPS.values():
    _first = next(name for name in _op.rows if name != "positions")
    _axis = _op.rows[_first]
    _add(_op, "spreads_a_nan", _spreads(_op, _first))
    _add(_op, "forgets_far_rows", _forgets_far(_op, _first, _axis))
    _add(_op, "takes_expanded_rows_once", _takes_once(_op, _first, _axis))
    _add(_op, "takes_overlapping_rows_as_dense", _dense_where_it_overlaps(_op, _first, _axis))


FOR_EVERY_OP |= {name for name in globals() if "__" in name.strip("_")}


# Routers

_softmax, _sigmoid = OPS["topk_softmax"].reference, OPS["topk_sigmoid"].reference


@_wrong("topk_softmax")
def _an_expert_that_is_none_for_a_nan(given: Arguments) -> Outputs:
    weights, ids = _softmax(**given)
    is_finite = given["router_logits"].isfinite().all(-1, keepdim=True)
    return weights, torch.where(is_finite, ids, 2**20)


@_wrong("topk_sigmoid")
def _one_expert_for_all_slots_of_a_nan(given: Arguments) -> Outputs:
    weights, ids = _sigmoid(**given)
    return weights, ids.masked_fill(given["router_logits"].isnan().any(-1, keepdim=True), 0)


@_wrong("topk_softmax")
def _a_nan_is_no_expert(given: Arguments) -> Outputs:
    weights, ids = _softmax(**given)
    return weights, ids.masked_fill(given["router_logits"].isnan().any(-1, keepdim=True), -1)


def _divided_by_the_sum_alone(op_name: str) -> Call:
    def call(given: Arguments) -> Outputs:
        weights, ids = OPS[op_name].reference(**given | {"renormalize": False, "routed_scaling_factor": 1.0})
        if given["renormalize"]:
            weights = weights / weights.sum(-1, keepdim=True)
        return weights * given.get("routed_scaling_factor", 1.0), ids

    return call


for _name in ("topk_softmax", "topk_sigmoid"):
    _add(OPS[_name], "divides_by_a_sum_of_zero", _divided_by_the_sum_alone(_name))
    CASES.add(f"{_name}__divides_by_a_sum_of_zero")


# Experts

_moe = OPS["fused_moe"].reference


@_wrong("fused_moe", by_case=True)
def _ids_past_the_last_expert_wrap(given: Arguments) -> Outputs:
    ids, experts = given["topk_ids"], len(given["w13_weight"])
    return _moe(**given | {"topk_ids": torch.where(ids >= experts, ids % experts, ids)})


@_wrong("fused_moe", by_case=True)
def _absent_experts_weigh_zero(given: Arguments) -> Outputs:
    ids = given["topk_ids"]
    is_absent = (ids < 0) | (ids >= len(given["w13_weight"]))
    weights = given["topk_weights"].masked_fill(is_absent, 0.0)
    given |= {"topk_weights": weights, "topk_ids": ids.masked_fill(is_absent, 0)}
    unweighted = [
        _moe(**given | {"topk_weights": torch.ones_like(w), "topk_ids": i})
        for w, i in zip(weights.split(1, -1), given["topk_ids"].split(1, -1), strict=True)
    ]
    if given.get("apply_router_weight_on_input") or given["hidden_states"].dtype is not torch.float16:
        return _moe(**given)
    parts = zip(unweighted, weights.split(1, -1), strict=True)  # rounded to the dtype, as kernels may
    return sum(part.float() * w.float() for part, w in parts).to(torch.float16)  # type: ignore[union-attr]


@_wrong("fused_moe")
def _spreads_a_nan_of_a_router_weight(given: Arguments) -> Outputs:
    return _spreads(OPS["fused_moe"], "topk_weights")(given)


@_wrong("fused_moe")
def _far_ids_forgotten(given: Arguments) -> Outputs:
    return _forgets_far(OPS["fused_moe"], "topk_ids", 0)(given)


_workspaces: dict[int, tuple[Tensor, int]] = {}


@_wrong("fused_moe")
def _as_many_tokens_as_in_the_first_call(given: Arguments) -> Outputs:
    weight, tokens = given["w13_weight"], len(given["hidden_states"])
    _, most = _workspaces.setdefault(id(weight), (weight, tokens))
    result = _moe(**given)
    result[most:] = 0
    return result


# Norms and rotations, in place


def _norm_in_place(given: Arguments) -> Outputs:
    """Norm row after row, each written before the next one is read."""
    op = OPS["rms_norm"]
    if given.get("residual") is None or given["x"].dim() != 2:
        return op.reference(**given)
    row_arguments = [name for name in op.rows if given.get(name) is not None]
    x, residual = given["x"], given["residual"]
    out = x if op.reference(**given)[0].dtype is x.dtype else None  # type: ignore[union-attr]
    total = residual if not given.get("fp32_residual") else None
    if out is None or total is None:
        return op.reference(**given)
    for row in range(len(x)):
        normed, summed = op.reference(**given | {name: given[name][row : row + 1] for name in row_arguments})
        total.select(0, row).copy_(summed[0])
        out.select(0, row).copy_(normed[0])
    return out, total


@_wrong("rms_norm")
def _over_expanded_rows(given: Arguments) -> Outputs:
    given = dict(given)
    if given.get("residual") is not None and given["residual"].data_ptr() == given["x"].data_ptr():
        given["residual"] = given["residual"].clone()
    return _norm_in_place(given)


@_wrong("rms_norm")
def _over_a_residual_that_is_x(given: Arguments) -> Outputs:
    for name in ("x", "residual"):
        if given.get("residual") is not None:
            given[name] = unshared(given[name])
    return _norm_in_place(given)


@_wrong("rms_norm")
def _knows_only_its_first_address(given: Arguments) -> Outputs:
    """A residual whose rows begin one row later lies in its memory too."""
    if given.get("residual") is not None:
        given["x"], given["residual"] = unshared(given["x"]), unshared(given["residual"])
        if given["residual"].data_ptr() == given["x"].data_ptr():
            given["residual"] = given["residual"].clone()
    return _norm_in_place(given)


@_wrong("gemma_rms_norm")
def _over_a_weight_in_its_rows(given: Arguments) -> Outputs:
    op, x, residual = OPS["gemma_rms_norm"], given["x"], given.get("residual")
    if residual is None or shares_memory(x, residual) or shares_memory(residual, x):
        return op.reference(**given)
    normed, total = op.reference(**given)
    if given.get("post_residual_addition") is not None:
        return normed, total
    return x.copy_(normed), residual.copy_(total)


@_wrong("rms_norm")
def _fills_the_weight_once(given: Arguments) -> Outputs:
    """Weights are brought to float32 once, and never again when they are loaded anew."""
    weight = given["weight"]
    kept = _weights.setdefault(id(weight), (weight, weight.float()))[1]
    if given.get("cast_x_before_out_mul"):
        return OPS["rms_norm"].reference(**given)
    return OPS["rms_norm"].reference(**given | {"weight": kept})


_weights: dict[int, tuple[Tensor, Tensor]] = {}


def _kept_while_not_counted(weight: Tensor) -> Tensor:
    """Return a copy of a weight, made anew where PyTorch counts a write; SGLang loads weights past that."""
    kept = _by_version.get(id(weight))
    if kept is None or kept[1] != weight._version:
        kept = _by_version[id(weight)] = (weight, weight._version, weight.clone())
    return kept[2]


_by_version: dict[int, tuple[Tensor, int, Tensor]] = {}


@_wrong("gemma_rms_norm")
def _adds_one_to_the_weight_when_pytorch_counts_a_write(given: Arguments) -> Outputs:
    return OPS["gemma_rms_norm"].reference(**given | {"weight": _kept_while_not_counted(given["weight"])})


@_wrong("fused_moe")
def _packs_weights_when_pytorch_counts_a_write(given: Arguments) -> Outputs:
    packed = {name: _kept_while_not_counted(given[name]) for name in ("w13_weight", "w2_weight")}
    return _moe(**given | packed)


@_wrong("layer_norm")
def _nothing_to_do_after_an_empty_call(given: Arguments) -> Outputs:
    x, weight = given["x"], given["weight"]
    if weight is not None:
        _, was_empty = _seen.setdefault(id(weight), (weight, not x.numel()))
        if was_empty:
            return torch.zeros_like(x)
    return OPS["layer_norm"].reference(**given)


_seen: dict[int, tuple[Tensor, bool]] = {}


@_wrong("rms_norm")
def _scales_by_the_largest_first(given: Arguments) -> Outputs:
    """Against overflow a row is divided by its largest element, which is zero in a row of zeros."""
    if given.get("residual") is not None or len(given) > 3:
        return OPS["rms_norm"].reference(**given)
    x = given["x"].double()
    largest = x.abs().amax(-1, keepdim=True) if x.numel() else x[..., :1]
    scale = torch.rsqrt((x / largest).square().mean(-1, keepdim=True) + given["eps"] / largest.square())
    return (x / largest * scale * given["weight"].double()).to(given["x"].dtype)


def _rotates_in_place(op_name: str) -> Call:
    op = OPS[op_name]

    def call(given: Arguments) -> Outputs:
        query, key = given["query"], given["key"]
        if shares_memory(query) or shares_memory(key):
            return op.reference(**given)
        query.copy_(op.reference(**given)[0])
        return query, key.copy_(op.reference(**given)[1])

    return call


for _name in ("rotary_embedding", "mrope"):
    _add(OPS[_name], "over_a_key_that_is_the_query", _rotates_in_place(_name))


@_wrong("rotary_embedding")
def _tables_of_the_first_call(given: Arguments) -> Outputs:
    cache = given["cos_sin_cache"]
    kept = _tables.setdefault(id(cache), (cache, cache.clone()))[1]
    return OPS["rotary_embedding"].reference(**given | {"cos_sin_cache": kept})


_tables: dict[int, tuple[Tensor, Tensor]] = {}


# Delta rules


DECODE, UPDATE = "fused_recurrent_gated_delta_rule_packed_decode", "fused_sigmoid_gating_delta_rule_update"
CHUNK = "chunk_gated_delta_rule"


def _of_all_states(op_name: str) -> Call:
    """A state that the call does not name reaches its results."""

    def call(given: Arguments) -> Outputs:
        poison = 0 * given["initial_state"].float().sum()
        return _mapped(OPS[op_name].reference(**given), lambda t: t + poison.to(t.dtype))

    return call


for _name in (DECODE, UPDATE, CHUNK):
    _add(OPS[_name], "reads_all_states", _of_all_states(_name))


@_wrong(CHUNK)
def _a_nan_of_a_sequence_in_the_next_state(given: Arguments) -> Outputs:
    outputs, pool = OPS[CHUNK].reference(**given), given["initial_state"]
    named = [index for index in given["initial_state_indices"].tolist() if index >= 0]
    for before, after in itertools.pairwise(named):
        pool[after] += 0 * pool[before]
    return outputs


@_wrong(UPDATE)
def _a_nan_of_v_in_all_states(given: Arguments) -> Outputs:
    outputs = OPS[UPDATE].reference(**given)
    named = [index for index in given["initial_state_indices"].tolist() if index >= 0]
    given["initial_state"][named] += 0 * given["v"].float().sum()
    return outputs


@_wrong(DECODE)
def _state_offsets_in_32_bits(given: Arguments) -> Outputs:
    pool = given["initial_state"]
    is_far = given["initial_state_indices"].long() * pool.stride(0) >= 2**31
    if is_far.any():
        given["initial_state_indices"] = given["initial_state_indices"].masked_fill(is_far, -1)
    return OPS[DECODE].reference(**given)


@_wrong(DECODE)
def _unit_rows_of_no_length(given: Arguments) -> Outputs:
    """The root of a sum of squares without the small number beside it: zero in a row of zeros."""
    outputs = OPS[DECODE].reference(**given)
    is_zero = (given["mixed_qkv"] == 0).all(-1)
    return _mapped(outputs, lambda t: t.masked_fill(is_zero.view(-1, 1, 1), torch.nan))


# Attention over a pool

for _name, _what, _call in kernels_of_attention():
    _add(OPS[_name], _what, _call)
CASES |= {f"{_name}__reads_all_slots" for _name in ATTENTION}
_add(OPS[CHUNK], "remembers_its_first_scale", remembering(CHUNK, "scale"))


@_wrong("kv_cache_write")
def _leaves_far_slots_out(given: Arguments) -> Outputs:
    """A slot is not written where its offset does not fit in 32 bits."""
    is_far = given["cache_loc"].long() * given["k_buffer"].stride(0) >= 2**31
    return OPS["kv_cache_write"].reference(
        **given | {"cache_loc": given["cache_loc"].masked_fill(is_far, -1)}
    )


# Now and then

_calls: dict[Any, int] = {}


@_wrong("silu_and_mul")
def _wrong_in_the_60th_call_of_a_shape(given: Arguments) -> Outputs:
    result, key = OPS["silu_and_mul"].reference(**given), (given["x"].shape, given["x"].dtype)
    _calls[key] = _calls.get(key, 0) + 1
    return _mapped(result, torch.neg) if _calls[key] == 60 else result


STRESS.add("silu_and_mul__wrong_in_the_60th_call_of_a_shape")


def names() -> list[str]:
    """Return the names of all wrong kernels here."""
    return [
        name for name, value in globals().items() if "__" in name.strip("_") and inspect.isfunction(value)
    ]
