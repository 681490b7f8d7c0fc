"""What the attention backend ``sglang_fl`` cannot do, known before a request comes."""

from collections.abc import Iterator
from typing import Any

from sglang.srt import platforms
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention

from sglang_fl.platform import PlainSpeculation
from sglang_fl.sglang_adapter.attention.eight_bit import why_not_pools
from sglang_fl.sglang_adapter.releases import CHUNKS, ENCODER_DECODERS
from sglang_fl.sglang_adapter.seams import installed_version

__all__ = ["layers_of", "needs_of", "options_of", "reasons_of", "why_not"]

#: Models with an encoder and a decoder that were judged. Others may hide some of an encoder's tokens from a
#: part of the text, as Moss-VL does by ``cross_attention_custom_mask`` of the batch.
JUDGED = frozenset({"WhisperForConditionalGeneration"})


def layers_of(runner: Any) -> list[Any]:
    """Return the attention layers of a runner's model."""
    return [layer for layer in runner.model.modules() if isinstance(layer, RadixAttention)]


def options_of(layer: Any) -> dict[str, Any]:
    """Return the options of the two ops that say what a layer makes of its scores."""
    numbers = {"logit_cap": layer.logit_cap, "temperature_len": layer.xai_temperature_len}
    # Some models say None where scores saturate nowhere.
    return {name: number for name, number in numbers.items() if number is not None and number > 0}


def needs_of(layers: list[Any]) -> set[str]:
    """Return the options of the two ops that these layers need in every call."""
    needs = {
        "sliding_window": any(layer.sliding_window_size > -1 for layer in layers),
        "is_causal": any(layer.attn_type == AttentionType.ENCODER_ONLY for layer in layers),
    }
    of_scores = {option for layer in layers for option in options_of(layer)}
    return of_scores | {option for option, is_needed in needs.items() if is_needed}


def why_not(runner: Any) -> str | None:
    """Return why the backend cannot serve what a runner has loaded, or None.

    Parameters
    ----------
    runner : SGLang's ``ModelRunner``, with model and pools
    """
    return next(_reasons(runner), None)


def _reasons(runner: Any) -> Iterator[str]:
    layers = layers_of(runner)
    if getattr(runner.token_to_kv_pool, "use_dsa", False):
        yield "sparse attention (DSA)"
    if runner.model_config.is_encoder_decoder:
        yield from _of_encoder_and_decoder(runner)
    speculates = runner.server_args.speculative_algorithm is not None
    if speculates and not isinstance(platforms.current_platform, PlainSpeculation):
        yield "speculative decoding where SGLang has a platform itself"
    if any(layer.use_irope for layer in layers):
        if speculates:
            yield "speculative decoding with attention in chunks (Llama 4)"
        if installed_version() not in CHUNKS:
            yield f"attention in chunks (Llama 4) on other SGLang than {CHUNKS}"
    of_pools = why_not_pools(runner)
    if of_pools is not None:
        yield of_pools
    for layer in layers:
        yield from reasons_of(layer)


def _of_encoder_and_decoder(runner: Any) -> Iterator[str]:
    architectures = runner.model_config.hf_config.architectures or []
    if JUDGED.isdisjoint(architectures):
        yield f"the encoder and decoder of {', '.join(architectures)}"
    if installed_version() not in ENCODER_DECODERS:
        yield f"models with an encoder and a decoder on other SGLang than {ENCODER_DECODERS}"
    size = runner.token_to_kv_pool.page_size
    if size > 1:  # alloc_for_decode_default in mem_cache/allocation.py
        yield f"--page-size {size} beside an encoder, of whose tokens SGLang takes no account there"


def reasons_of(layer: Any) -> Iterator[str]:
    """Yield what neither of the two ops computes of an attention layer."""
    if layer.attn_type not in (AttentionType.DECODER, AttentionType.ENCODER_ONLY):
        yield f"attention of the type {layer.attn_type.value}"
    options = options_of(layer)
    if "logit_cap" in options and layer.logit_capping_method != "tanh":
        yield f"scores that are capped by {layer.logit_capping_method}"
    is_part = layer.use_irope or layer.sliding_window_size > -1 or layer.is_cross_attention
    if "temperature_len" in options and is_part:  # the lists then do not tell where a token stands
        yield "a temperature by position (Grok) in a window, in chunks or across"
    if layer.use_irope and layer.sliding_window_size > -1:
        yield "attention in chunks and in a window at once"
