"""``TopK`` to the ops ``topk_softmax`` and ``topk_sigmoid``.

SGLang: ``forward(hidden_states, router_logits, *, num_token_non_padded=None,
expert_location_dispatch_info=None, ...)`` returns a ``TopKOutput``. Contract: ``topk_softmax(router_logits,
top_k, renormalize, *, correction_bias=None, num_expert_group=None, topk_group=None,
routed_scaling_factor=1.0, shared_expert_weight=None)`` and the same of ``topk_sigmoid``, which return weights
and ids.

Only the choice of the experts is ours. What SGLang does with it (padded tokens, moved experts, recording)
stays SGLang's: its own forward runs, on a twin of the layer whose ``custom_routing_function`` is the kernel.

Falls through: layers with a routing function of their own, fused shared experts other than one behind groups
(DeepSeek-V3, GLM-4-MoE), an output format that leaves the routing to the experts' kernel, other scoring
functions; calls with a bias for each token or with partial logits; to 0.5.16 calls with padded tokens, which
a routing function excludes there.
"""

import copy
import dataclasses
from collections.abc import Callable
from functools import partial
from operator import is_
from typing import Any

from sglang_fl.dispatch.own_path import OwnPath
from sglang_fl.dispatch.plan import Forward
from sglang_fl.errors import REFUSALS, UnsupportedError
from sglang_fl.ops import OPS, Kernel, with_options
from sglang_fl.sglang_adapter import seams
from sglang_fl.sglang_adapter.layers.adapter import Adapter, Own

__all__ = ["ADAPTERS"]


class _Twin:
    """A layer's twin that routes by the kernel; made again whenever the layer's configuration has changed.

    Parameters
    ----------
    layer : the router, or a copy of it
    kernel : of the op
    """

    def __init__(self, layer: Any, kernel: Kernel) -> None:
        config = layer.topk_config
        run = with_options(kernel, _options(config))
        slots = _shared_slots(config)

        def route(hidden_states: Any, gating_output: Any, topk: int, renormalize: bool) -> Any:
            if topk != config.top_k:
                # With their weight by the factor that the twin does not have.
                raise UnsupportedError("each rank adds slots of its own for shared experts")
            return run(gating_output, topk - slots, renormalize)

        self.layer = copy.copy(layer)
        self._config = config
        self._values = tuple(vars(config).values())
        self._routing = dataclasses.replace(
            config,
            custom_routing_function=route,
            use_grouped_topk=False,
            # The kernel has multiplied by it already.
            apply_routed_scaling_factor_on_output=False,
        )

    def is_of(self, config: Any) -> bool:
        """Whether this configuration holds the very objects that the twin was made from."""
        return config is self._config and all(map(is_, vars(config).values(), self._values))

    def follow(self, layer: Any) -> Any:
        """Return the twin with the layer's attributes of now."""
        self.layer.__dict__.update(layer.__dict__)
        self.layer.topk_config = self._routing
        return self.layer


def bind(layer: Any, kernel: Kernel, own: Own, why_left: Callable[[Any], str | None]) -> Forward:
    """Return SGLang's own forward, on a twin of the layer that routes by the kernel.

    ``why_left`` says of a layer why it is not for this op. It was asked before the layer was bound, but what
    is configured may change meanwhile, the sort of scores too.
    """
    # On NPUs SGLang's own forward asks for no routing function; its plain one does.
    method = "forward_native" if own.path is OwnPath.NPU else own.method
    twin = _Twin(layer, kernel)
    excluded = ["dynamic_expert_bias", "router_logits_partials"]
    if not seams.routes_padded_tokens(seams.installed_version()):
        excluded.append("num_token_non_padded")

    def forward(layer: Any, hidden_states: Any, router_logits: Any, **given: Any) -> Any:
        nonlocal twin
        if given and (any(given.get(name) is not None for name in excluded) or _is_fake(given)):
            return own(layer, hidden_states, router_logits, **given)
        if not twin.is_of(layer.topk_config):
            if why_left(layer) is not None:
                return own(layer, hidden_states, router_logits, **given)
            twin = _Twin(layer, kernel)
        try:
            return getattr(type(layer), method)(twin.follow(layer), hidden_states, router_logits, **given)
        except REFUSALS as refusal:
            own.because(refusal)
        return own(layer, hidden_states, router_logits, **given)

    return forward


def _is_fake(given: dict[str, Any]) -> bool:
    """Whether SGLang routes at random in this call, with a bias of zeros that no routing function gets."""
    info = given.get("expert_location_dispatch_info")
    return info is not None and info.ep_dispatch_algorithm == "fake"


def _options(config: Any) -> dict[str, Any]:
    """Return the options of the contract that this configuration needs."""
    options: dict[str, Any] = {"correction_bias": config.correction_bias}
    if config.use_grouped_topk:
        options |= {"num_expert_group": config.num_expert_group, "topk_group": config.topk_group}
    if config.apply_routed_scaling_factor_on_output:
        options["routed_scaling_factor"] = config.routed_scaling_factor
    if _shared_slots(config):
        # What follows multiplies all by the factor that the weights do not hold yet.
        is_scaled = config.apply_routed_scaling_factor_on_output
        options["shared_expert_weight"] = 1.0 if is_scaled else 1 / config.routed_scaling_factor
    return {name: value for name, value in options.items() if value is not None}


def why_not(layer: Any) -> str | None:
    """Say what of a layer neither contract can express."""
    config = layer.topk_config
    reasons = {
        "ep_dispatch_algorithm='fake'": _dispatch_algorithm() == "fake",
        "custom_routing_function": config.custom_routing_function is not None,
        "fused shared experts": not _can_share(config),
        "waterfill": any(
            getattr(layer, name, False) for name in ("enable_waterfill", "enable_deepep_waterfill")
        ),
        f"output_format={config.output_format}": not _is_standard(config.output_format),
        f"scoring_func={config.scoring_func!r}": config.scoring_func not in ("softmax", "sigmoid"),
    }
    return next((reason for reason, holds in reasons.items() if holds), None)


def _dispatch_algorithm() -> str | None:
    """Return SGLang's ``--ep-dispatch-algorithm``, or None where no server has been configured."""
    from sglang.srt.eplb import expert_location_dispatch as dispatch

    try:
        if hasattr(dispatch, "get_exec"):
            return dispatch.get_exec().moe.ep_dispatch_algorithm  # type: ignore[no-any-return]
        return dispatch.get_global_server_args().ep_dispatch_algorithm  # type: ignore[no-any-return]
    except (AttributeError, ValueError, RuntimeError):
        return None


def _shared_slots(config: Any) -> int:
    """Return the number of columns for shared experts, by the name of 0.5.23 or the one before."""
    for name in ("num_shared_topk_slots", "num_fused_shared_experts"):
        slots = getattr(config, name, None)
        if slots is not None:
            return int(slots)
    return 0


def _can_share(config: Any) -> bool:
    """Whether the shared experts are none, or one as SGLang's grouped routings weigh it."""
    slots = _shared_slots(config)
    is_grouped = config.use_grouped_topk and config.renormalize and bool(config.routed_scaling_factor)
    return slots == 0 or (slots == 1 and is_grouped)


def _is_standard(output_format: Any) -> bool:
    if output_format is not None:
        return bool(output_format.name == "STANDARD")
    # To 0.5.22 an open format is settled in the call, by the runner of the experts.
    from sglang.srt.layers.moe.utils import get_moe_runner_backend

    backend = get_moe_runner_backend()
    return bool(backend.is_auto() or backend.is_triton())


def _uses_sigmoid(config: Any) -> bool:
    # Groups with a bias are SGLang's name for DeepSeek-V3's routing, whatever the scoring function says.
    return config.scoring_func == "sigmoid" or (
        config.use_grouped_topk and config.correction_bias is not None
    )


def why_not_softmax(layer: Any) -> str | None:
    """Say whether the scores are sigmoids, or what else there is."""
    return "the scores are sigmoids" if _uses_sigmoid(layer.topk_config) else why_not(layer)


def why_not_sigmoid(layer: Any) -> str | None:
    """Say whether the scores are a softmax, or what else there is."""
    return why_not(layer) if _uses_sigmoid(layer.topk_config) else "the scores are a softmax"


_LAYER_CLASS = "sglang.srt.layers.moe.topk:TopK"

ADAPTERS = (
    Adapter(_LAYER_CLASS, OPS["topk_softmax"], partial(bind, why_left=why_not_softmax), why_not_softmax),
    Adapter(_LAYER_CLASS, OPS["topk_sigmoid"], partial(bind, why_left=why_not_sigmoid), why_not_sigmoid),
)
