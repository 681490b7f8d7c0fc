"""SGLang's checks that a model runs on an attention backend which it lists by name, and what passes them."""

from typing import Any

__all__ = ["MODELS", "accept"]

#: Architectures that SGLang runs on the backends of a list alone, and that were judged on ours. There are
#: more such lists; what has not been judged stays refused.
MODELS = frozenset({"GptOssForCausalLM"})

#: A backend that is on the list of each of them.
LISTED = "triton"


def accept(name: str) -> None:
    """Let SGLang's checks of these models take a backend for one that they list.

    The lists are in the middle of the function that checks, so that none can be appended to. But what the
    function compares with them is asked of another one, which is nowhere else asked by this module. All other
    modules still get the true name.

    Parameters
    ----------
    name : of the backend
    """
    from sglang.srt.arg_groups import model_hook

    own = model_hook.attention_backends_of

    def attention_backends_of(config: Any) -> tuple[Any, ...]:
        backends: tuple[Any, ...] = own(config)
        if name not in backends or MODELS.isdisjoint(_architectures(config)):
            return backends
        return tuple(LISTED if backend == name else backend for backend in backends)

    model_hook.attention_backends_of = attention_backends_of


def _architectures(config: Any) -> list[str]:
    from sglang.srt.arg_groups.model_override_base import model_config_of

    return model_config_of(config).hf_config.architectures or []
