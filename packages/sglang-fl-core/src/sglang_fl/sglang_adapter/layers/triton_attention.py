"""The kernels of SGLang's Triton attention backend to the two ops of attention.

They are no layer classes: ``TritonAttnBackend`` holds them as functions, which are replaced on the object
once the model is loaded. Each leaves its result in ``o``, which is handed on as the option ``out``; from a
kernel without that option it is copied.

SGLang: ``decode_attention_fwd(q, k_buffer, v_buffer, o, kv_indptr, kv_indices, attn_logits, attn_lse,
num_kv_splits, max_kv_splits, sm_scale, k_scale, v_scale, ...)`` to ``decode_attention(q, k_buffer, v_buffer,
kv_indptr, kv_indices, scale, ...)``; ``extend_attention_fwd(q, k, v, o, k_buffer, v_buffer, qo_indptr,
kv_indptr, kv_indices, custom_mask, is_causal, mask_indptr, max_len_extend, k_scale, v_scale, sm_scale, ...)``
to ``extend_attention(q, k, v, k_buffer, v_buffer, qo_indptr, kv_indptr, kv_indices, scale, ...)``.

A KV cache in 8 bit goes to kernels that take the options ``k_scale`` and ``v_scale``, and scores with a
temperature (Grok) to those that take ``temperature_len``.

Falls through: a mask for drafted tokens, scores that a model changes, windows in both directions, prefixes of
latents beside keys of each head, options by position, and whatever else a later release may pass. Left to
SGLang: all of decode with decode context parallelism, which reads partial results; both ops in deterministic
inference, as every op that sums (``Adapter.why_not``); and ``extend_attention_fwd_unified``, which that alone
calls.
"""

from collections.abc import Mapping
from typing import Any

import torch

from sglang_fl.dispatch.plan import Forward
from sglang_fl.errors import REFUSALS, UnsupportedError
from sglang_fl.ops import OPS, Kernel, lacking
from sglang_fl.sglang_adapter.layers.adapter import Adapter, Own

__all__ = ["ADAPTERS", "CLASS"]

CLASS = "sglang.srt.layers.attention.triton_backend:TritonAttnBackend"

#: What SGLang passes for its own kernels' sake: none of it changes a result.
_FOR_ITS_KERNELS = frozenset(
    (
        *("has_mla", "use_pdl", "page_size", "enable_lean", "lean_Mp", "lean_Lp", "lean_Op", "lean_locks"),
        *("uneven_batch", "extend_seq_lens_cpu", "window_kv_offsets", "skip_prefix_custom_mask"),
    )
)


def why_not_decode(backend: Any) -> str | None:
    """Say why all of decode is SGLang's, or None."""
    if getattr(backend, "dcp_size", 1) > 1:
        return "decode context parallelism reads the partial results of SGLang's kernel"
    return None


def bind_decode(layer: Any, kernel: Kernel, own: Own) -> Forward:
    """Return ``decode_attention_fwd``."""
    run = _into(kernel)

    def decode_attention_fwd(
        layer: Any,
        q: Any,
        k_buffer: Any,
        v_buffer: Any,
        o: Any,
        kv_indptr: Any,
        kv_indices: Any,
        attn_logits: Any,
        attn_lse: Any,
        num_kv_splits: Any,
        max_kv_splits: int,
        sm_scale: float,
        k_scale: float,
        v_scale: float,
        *more: Any,
        **given: Any,
    ) -> None:
        try:
            _refuse_places(more)
            options = _options(given) | _scales(k_buffer, k_scale, v_scale)
            bounds = kv_indptr[: len(q) + 1]  # of a graph's buffer the beginning
            run(o, q, k_buffer, v_buffer, bounds, kv_indices, sm_scale, **options)
        except REFUSALS as refusal:
            own.because(refusal)
        else:
            return
        of_kernel = (attn_logits, attn_lse, num_kv_splits, max_kv_splits)
        scales = (sm_scale, k_scale, v_scale)
        own(layer, q, k_buffer, v_buffer, o, kv_indptr, kv_indices, *of_kernel, *scales, *more, **given)

    return _not_compiled(decode_attention_fwd)


def bind_extend(layer: Any, kernel: Kernel, own: Own) -> Forward:
    """Return ``extend_attention_fwd``."""
    run = _into(kernel)

    def extend_attention_fwd(
        layer: Any,
        q: Any,
        k: Any,
        v: Any,
        o: Any,
        k_buffer: Any,
        v_buffer: Any,
        qo_indptr: Any,
        kv_indptr: Any,
        kv_indices: Any,
        custom_mask: Any,
        is_causal: bool,
        mask_indptr: Any,
        max_len_extend: int,
        k_scale: float,
        v_scale: float,
        sm_scale: float | None = None,
        *more: Any,
        **given: Any,
    ) -> None:
        try:
            _refuse_places(more)
            if custom_mask is not None:
                raise UnsupportedError("a mask for drafted tokens")
            options = _options(given)
            if not is_causal:
                if "sliding_window" in options:
                    raise UnsupportedError("a window in both directions")
                options["is_causal"] = False
            pools = _pools(k, v, k_buffer, v_buffer, kv_indices)
            if pools[0] is k_buffer:
                options |= _scales(k_buffer, k_scale, v_scale)
            bounds = kv_indptr[: len(qo_indptr)]
            scale = sm_scale or q.shape[-1] ** -0.5
            run(o, q, k, v, *pools, qo_indptr, bounds, kv_indices, scale, **options)
        except REFUSALS as refusal:
            own.because(refusal)
        else:
            return
        bounds_and_mask = (qo_indptr, kv_indptr, kv_indices, custom_mask, is_causal, mask_indptr)
        scales = (max_len_extend, k_scale, v_scale, sm_scale)
        own(layer, q, k, v, o, k_buffer, v_buffer, *bounds_and_mask, *scales, *more, **given)

    return _not_compiled(extend_attention_fwd)


def _refuse_places(more: tuple[Any, ...]) -> None:
    """Raise ``UnsupportedError`` for options by position, whose places differ between releases."""
    if more:
        raise UnsupportedError("options by position")


def _not_compiled(forward: Forward) -> Forward:
    """Return a function that ``torch.compile`` does not look into, as SGLang's are."""
    disabled: Forward = torch.compiler.disable(forward)  # type: ignore[no-untyped-call]
    return disabled


def _into(kernel: Kernel) -> Forward:
    """Return a function that computes an op into the tensor that is its first argument."""
    options = (*_OPTIONS.values(), "is_causal", "k_scale", "v_scale", "out")
    lacks = frozenset(lacking(kernel, options))

    def run(o: Any, *tensors: Any, **options: Any) -> None:
        if not lacks.isdisjoint(options):
            raise UnsupportedError(f"it does not take {', '.join(sorted(lacks & options.keys()))}")
        result = kernel(*tensors, **options) if "out" in lacks else kernel(*tensors, **options, out=o)
        if result is not o:
            o.copy_(result)

    return run


def _options(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return what SGLang asks for as options of the ops.

    Raises
    ------
    UnsupportedError : they cannot express it
    """
    asked = {name: value for name, value in given.items() if name not in _FOR_ITS_KERNELS and _asks(value)}
    options: dict[str, Any] = {}
    for name, option in _OPTIONS.items():
        if name in asked:
            options[option] = asked.pop(name)
    if asked:
        raise UnsupportedError(f"{', '.join(sorted(asked))}, which SGLang passes")
    return options


def _scales(k_buffer: Any, k_scale: float, v_scale: float) -> dict[str, float]:
    """Return the scales of pools as options of the ops, where there are any."""
    if k_buffer.element_size() > 1 and k_scale == v_scale == 1.0:
        return {}
    return {"k_scale": k_scale, "v_scale": v_scale}


#: SGLang's names of what the ops have, and theirs.
_OPTIONS = {
    "logit_cap": "logit_cap",
    "xai_temperature_len": "temperature_len",
    "sinks": "sinks",
    "sliding_window_size": "sliding_window",
}


def _asks(value: Any) -> bool:
    """Whether a value asks for anything: None, False and numbers up to 0 do not."""
    return value is not None and (not isinstance(value, bool | int | float) or value > 0)


def _pools(k: Any, v: Any, k_buffer: Any, v_buffer: Any, kv_indices: Any) -> tuple[Any, Any]:
    """Return the pools as the op takes them.

    A model with latent attention passes keys and values of each head where no sequence has a prefix. Of its
    pool of latents nothing is read then, and what is new stands in for it.

    Raises
    ------
    UnsupportedError : there may be a prefix
    """
    if k.shape[1:] == k_buffer.shape[1:] and v.shape[1:] == v_buffer.shape[1:]:
        return k_buffer, v_buffer
    if len(kv_indices):
        raise UnsupportedError("a prefix of latents beside keys of each head")
    return k, v


ADAPTERS = (
    Adapter(f"{CLASS}.decode_attention_fwd", OPS["decode_attention"], bind_decode, why_not_decode),
    Adapter(f"{CLASS}.extend_attention_fwd", OPS["extend_attention"], bind_extend),
)
