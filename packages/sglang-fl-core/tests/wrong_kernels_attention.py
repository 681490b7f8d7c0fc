"""Kernels of attention over a pool that are wrong at an edge alone, for ``wrong_kernels_edges``."""

from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor

from sglang_fl.ops import OPS, Outputs

Arguments = dict[str, Any]
Call = Callable[[Arguments], Outputs]

ATTENTION = ("decode_attention", "extend_attention")


def _with_sinks_as_dense(op_name: str) -> Call:
    def call(given: Arguments) -> Outputs:
        sinks = given.get("sinks")
        if sinks is not None:
            given["sinks"] = sinks.as_strided(sinks.shape, (1,), sinks.storage_offset())
        return OPS[op_name].reference(**given)

    return call


def _into_any_memory(op_name: str) -> Call:
    """The result is written where the caller wants it, whatever else lies there."""

    def call(given: Arguments) -> Outputs:
        outputs, out = OPS[op_name].reference(**given), given.get("out")
        if out is None:
            return outputs
        o, *rest = (outputs,) if isinstance(outputs, Tensor) else outputs
        for into, row in zip(out, o, strict=True):
            into.copy_(row)
        return (out, *rest) if rest else out

    return call


_numbers: dict[Any, float] = {}


def remembering(op_name: str, name: str) -> Call:
    """A number is that of the first call of its layout."""

    def call(given: Arguments) -> Outputs:
        if given.get(name):
            tensors = {n: v for n, v in given.items() if isinstance(v, Tensor)}
            layout = (op_name, name, *((n, v.dtype, v.shape, v.stride()) for n, v in tensors.items()))
            given[name] = _numbers.setdefault(layout, given[name])
        return OPS[op_name].reference(**given)

    return call


def _far_slots_are_empty(op_name: str, name: str) -> Call:
    """A slot is read as zeros where its offset does not fit in 32 bits."""

    def call(given: Arguments) -> Outputs:
        pool = given[name]
        if len(pool) and (len(pool) - 1) * pool.stride(0) >= 2**31:
            given[name] = pool.clone()
            given[name][-1].zero_()
        return OPS[op_name].reference(**given)

    return call


def _first_sequence_at_weight_zero(op_name: str) -> Call:
    """Lists are filled up with the first slot of the first one, whose value has the weight 0."""

    def call(given: Arguments) -> Outputs:
        bounds, slots = given["kv_indptr"].tolist(), given["kv_indices"]
        if bounds[0] == bounds[-1]:
            return OPS[op_name].reference(**given)
        poison = 0 * given["v_buffer"][slots[bounds[0]]].float().sum()
        return _mapped(OPS[op_name].reference(**given), lambda t: t + poison.to(t.dtype))

    return call


def _all_slots_at_weight_zero(op_name: str) -> Call:
    def call(given: Arguments) -> Outputs:
        poison = 0 * given["v_buffer"].float().sum()
        return _mapped(OPS[op_name].reference(**given), lambda t: t + poison.to(t.dtype))

    return call


def _mapped(outputs: Outputs, change: Callable[[Tensor], Tensor]) -> Outputs:
    return change(outputs) if isinstance(outputs, Tensor) else tuple(map(change, outputs))


def kernels_of_attention() -> Iterator[tuple[str, str, Call]]:
    """Yield an op's name, what is wrong, and the kernel as a function of the arguments."""
    for op in ATTENTION:
        yield op, "reads_strided_sinks_as_dense", _with_sinks_as_dense(op)
        yield op, "writes_over_what_it_reads", _into_any_memory(op)
        for number in ("scale", "k_scale", "logit_cap"):
            yield op, f"remembers_its_first_{number}", remembering(op, number)
        for pool in ("k_buffer", "v_buffer"):
            yield op, f"forgets_far_slots_of_{pool}", _far_slots_are_empty(op, pool)
        yield op, "reads_the_first_sequence_for_all", _first_sequence_at_weight_zero(op)
        yield op, "reads_all_slots", _all_slots_at_weight_zero(op)
