"""A vendor package of every op by its reference, into which mistakes can be planted while it runs.

Not imported by tests: its text becomes the module of an installed package. A file in the folder that
``MISTAKES_FOLDER`` names, called ``<op>.<mistake>``, plants that mistake in that op.
"""

import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sglang_fl.ops import OPS, Kernel, Op
from sglang_fl.vendor import BackendKind, OpImpl, Vendor

FOLDER = Path(os.environ.get("MISTAKES_FOLDER", "/nonexistent"))


def why_unavailable() -> str | None:
    """Return None: this chip is everywhere."""
    return None


def uneven(reference: Kernel, arguments: dict[str, Any]) -> Any:
    """Return the first half of the first result 10 % too large: as a whole a norm after it would mend it."""
    result = reference(**arguments)
    first, *others = (result,) if isinstance(result, torch.Tensor) else result
    spoiled = first.clone()
    spoiled[..., : first.shape[-1] // 2] *= 1.1
    return (spoiled, *others) if others else spoiled


def large_eps(reference: Kernel, arguments: dict[str, Any]) -> Any:
    """Normalise with ten times the eps."""
    return reference(**{**arguments, "eps": 10 * arguments["eps"]})


def late_query(reference: Kernel, arguments: dict[str, Any]) -> Any:
    """Rotate the query one position too far; both together would change nothing."""
    late, _ = reference(**{**arguments, "positions": arguments["positions"] + 1})
    return late, reference(**arguments)[1]


def other_style(reference: Kernel, arguments: dict[str, Any]) -> Any:
    """Pair the elements of a head in the other layout."""
    return reference(**{**arguments, "is_neox_style": not arguments["is_neox_style"]})


def cache_kept(reference: Kernel, arguments: dict[str, Any]) -> Any:
    """Leave the KV cache as it was before the call."""
    kept = {name: arguments[name].clone() for name in ("k_buffer", "v_buffer") if name in arguments}
    return reference(**{**arguments, **kept})


def one_axis(reference: Kernel, arguments: dict[str, Any]) -> Any:
    """Take a picture's tokens for text: their position in time for all three."""
    positions = arguments["positions"]
    return reference(**{**arguments, "positions": positions if positions.dim() == 1 else positions[0]})


def other_lanes(reference: Kernel, arguments: dict[str, Any]) -> Any:
    """Give the lanes to the three axes in the other order."""
    return reference(**{**arguments, "mrope_interleaved": not arguments.get("mrope_interleaved", False)})


def other_weights(reference: Kernel, arguments: dict[str, Any]) -> Any:
    """Give the experts of a token each other's weights."""
    return reference(**{**arguments, "topk_weights": arguments["topk_weights"].flip(-1)})


def other_sum(reference: Kernel, arguments: dict[str, Any]) -> Any:
    """Make the weights add up to one where they should not, and the reverse."""
    return reference(**{**arguments, "renormalize": not arguments["renormalize"]})


def unbiased(reference: Kernel, arguments: dict[str, Any]) -> Any:
    """Choose the experts by their scores alone."""
    return reference(**{**arguments, "correction_bias": None})


def ungrouped(reference: Kernel, arguments: dict[str, Any]) -> Any:
    """Choose among all experts."""
    return reference(**{**arguments, "num_expert_group": None, "topk_group": None})


def steep(reference: Kernel, arguments: dict[str, Any]) -> Any:
    """Scale the scores a tenth too much."""
    return reference(**{**arguments, "scale": 1.1 * arguments["scale"]})


def other_cap(reference: Kernel, arguments: dict[str, Any]) -> Any:
    """Cap scores at twice the value; at 1 where they are not to be capped."""
    return reference(**{**arguments, "logit_cap": 2 * arguments.get("logit_cap", 0.5)})


def other_window(reference: Kernel, arguments: dict[str, Any]) -> Any:
    """Let a query see one key more; in layers without a window a few only."""
    return reference(**{**arguments, "sliding_window": 1 + arguments.get("sliding_window", 7)})


def own_key_missing(reference: Kernel, arguments: dict[str, Any]) -> Any:
    """Take a sequence's first slot for its last one."""
    indices = arguments["kv_indices"].clone()
    bounds = arguments["kv_indptr"].long()
    indices[bounds[1:] - 1] = indices[bounds[:-1]]
    return reference(**{**arguments, "kv_indices": indices})


def strong_decay(reference: Kernel, arguments: dict[str, Any]) -> Any:
    """Forget a tenth faster."""
    if "g" in arguments:
        return reference(**{**arguments, "g": 1.1 * arguments["g"]})
    return reference(**{**arguments, "A_log": arguments["A_log"] + 0.1})


def other_decay(reference: Kernel, arguments: dict[str, Any]) -> Any:
    """Let the states of each head fade a tenth faster."""
    return reference(**{**arguments, "A": 1.1 * arguments["A"]})


def taps_reversed(reference: Kernel, arguments: dict[str, Any]) -> Any:
    """Let the last tap meet the oldest element."""
    return reference(**{**arguments, "weight": arguments["weight"].flip(1)})


def state_forgotten(reference: Kernel, arguments: dict[str, Any]) -> Any:
    """Begin each chunk of a prompt as if nothing were before it."""
    name = next(name for name in ("has_initial_state", "initial_states") if name in arguments)
    return reference(**{**arguments, name: torch.zeros_like(arguments[name])})


def state_kept(reference: Kernel, arguments: dict[str, Any]) -> Any:
    """Leave the states as they were before the call."""
    name = next(name for name in ("conv_states", "initial_state", "state") if name in arguments)
    return reference(**{**arguments, name: arguments[name].clone()})


Mistake = Callable[[Kernel, dict[str, Any]], Any]


def keys_for_values(reference: Kernel, arguments: dict[str, Any]) -> Any:
    """Write the keys into both pools."""
    return reference(**{**arguments, "v": arguments["k"]})


def next_slot(reference: Kernel, arguments: dict[str, Any]) -> Any:
    """Write one slot too far; the pool's last one is never used here."""
    return reference(**{**arguments, "cache_loc": arguments["cache_loc"] + 1})


def keys_scale_forgotten(reference: Kernel, arguments: dict[str, Any]) -> Any:
    """Take keys in 8 bit as they are."""
    return reference(**{**arguments, "k_scale": 1.0})


def values_scale_forgotten(reference: Kernel, arguments: dict[str, Any]) -> Any:
    """Take values in 8 bit as they are."""
    return reference(**{**arguments, "v_scale": 1.0})


#: What can go wrong in an op beside ``uneven``, which can in each that returns something.
MISTAKES: dict[str, tuple[Mistake, ...]] = {
    "rms_norm": (large_eps,),
    "gemma_rms_norm": (large_eps,),
    "layer_norm": (large_eps,),
    "rotary_embedding": (late_query, other_style),
    "qk_norm_rope": (large_eps, late_query, other_style),
    "mrope": (late_query, one_axis, other_lanes),
    "topk_softmax": (other_sum,),
    "topk_sigmoid": (other_sum, unbiased, ungrouped),
    "fused_moe": (other_weights,),
    "decode_attention": (steep, other_cap, own_key_missing),
    "extend_attention": (steep, other_cap, other_window),
    "kv_cache_write": (keys_for_values, next_slot),
    "causal_conv1d_fn": (taps_reversed, state_forgotten, state_kept),
    "causal_conv1d_update": (taps_reversed, state_kept),
    "mamba_chunk_scan_combined": (other_decay, state_forgotten),
    "selective_state_update": (other_decay, state_kept),
    "chunk_gated_delta_rule": (strong_decay, state_kept),
    "fused_recurrent_gated_delta_rule_packed_decode": (strong_decay, state_kept),
    "fused_sigmoid_gating_delta_rule_update": (strong_decay,),
}


#: The ops that write the KV cache, where SGLang lets them.
WRITE_CACHE = ("qk_norm_rope", "rotary_embedding")
#: Those that do nothing else, and return nothing.
WRITE_ALONE = ("kv_cache_write",)


def mistakes_of(op: str, writes_cache: bool = True) -> dict[str, Mistake]:
    """Return the mistakes that an op can make, by name."""
    of_cache = (cache_kept,) if op in WRITE_ALONE or (writes_cache and op in WRITE_CACHE) else ()
    of_results = () if op in WRITE_ALONE else (uneven,)
    return {mistake.__name__: mistake for mistake in (*of_results, *MISTAKES.get(op, ()), *of_cache)}


#: With a KV cache in 8 bit.
MISTAKES_IN_8_BIT = {mistake.__name__: mistake for mistake in (keys_scale_forgotten, values_scale_forgotten)}


def kernel_of(op: Op) -> Kernel:
    """Return the op's reference with whatever mistake is planted at a call."""
    mistakes = mistakes_of(op.name) | MISTAKES_IN_8_BIT
    files = {FOLDER / f"{op.name}.{name}": mistake for name, mistake in mistakes.items()}

    @functools.wraps(op.reference)
    def kernel(*args: Any, **kwargs: Any) -> Any:
        for file, mistake in files.items():
            if file.exists():
                arguments = op.signature.bind(*args, **kwargs).arguments
                return mistake(op.reference, arguments)
        return op.reference(*args, **kwargs)

    return kernel


globals().update({op.name: kernel_of(op) for op in OPS.values()})

VENDOR = Vendor(
    "mistaken",
    device_type="cpu",
    core_api=1,
    probe="mistaken_vendor:why_unavailable",
    platform="sglang_fl.sglang_adapter.cpu_platform.CpuPlatform",
    impls=tuple(
        OpImpl(name, BackendKind.VENDOR, "vendor.mistaken", f"mistaken_vendor:{name}") for name in OPS
    ),
)
