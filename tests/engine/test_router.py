"""Routers with a shared expert beside those that they choose, on SGLang's own ``TopK``."""

from pathlib import Path
from typing import Any

import pytest
import torch
from sglang.srt.layers.moe import topk

from tests.engine.every_layer import has_router, put, references, router, told

pytestmark = has_router


def shared_experts(number: int) -> dict[str, Any]:
    """Return what tells a router's configuration of them."""
    if "shared_experts" not in topk.TopKConfig.__dataclass_fields__:  # to 0.5.22
        return {"num_fused_shared_experts": number}
    from sglang.srt.configs.shared_experts import SharedExpertsConfig

    return {"shared_experts": SharedExpertsConfig(num_fused_shared_experts=number)}


IN_GROUPS: dict[str, Any] = {
    **shared_experts(1),
    "top_k": 4,
    "renormalize": True,
    "use_grouped_topk": True,
    "num_expert_group": 4,
    "topk_group": 2,
    "routed_scaling_factor": 2.5,
}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "dispatch.log"


def routed(log: Path, scores: str, bias: torch.Tensor | None, **options: Any) -> tuple[Any, Any]:
    """Route a few tokens by SGLang and by the reference; return what both have chosen."""
    made = {**IN_GROUPS, **options}
    x, logits = torch.randn(7, 8), torch.randn(7, 16)
    own = router(scores, bias=bias, **made)
    ours = put(references(log), router(scores, bias=bias, **made))
    torch.manual_seed(5)  # SGLang draws the shared expert, of which there is one
    expected = topk.TopK.forward_native(own, x, logits)
    return expected, ours._forward_method(x, logits)


@pytest.mark.parametrize("is_scaled", [False, True], ids=["scaled-later", "scaled"])
@pytest.mark.parametrize(
    ("scores", "has_bias"),
    [("softmax", False), ("sigmoid", False), ("sigmoid", True)],
    ids=["softmax", "sigmoid", "biased"],
)
def test_one_shared_expert_behind_groups_is_weighed_as_sglang_does(
    log: Path, scores: str, has_bias: bool, is_scaled: bool
):
    bias = torch.randn(16) if has_bias else None
    theirs, ours = routed(log, scores, bias, apply_routed_scaling_factor_on_output=is_scaled)
    assert told(log) == ["reference(reference)"]
    assert ours.topk_ids.shape == (7, 4)
    assert torch.equal(ours.topk_ids[:, -1], torch.full((7,), 16, dtype=torch.int32))
    for chosen in (theirs, ours):
        order = chosen.topk_ids.argsort(-1)
        chosen.topk_ids.copy_(chosen.topk_ids.gather(-1, order))
        chosen.topk_weights.copy_(chosen.topk_weights.gather(-1, order))
    assert torch.equal(ours.topk_ids, theirs.topk_ids)
    assert torch.allclose(ours.topk_weights, theirs.topk_weights, rtol=1e-5)
    assert torch.allclose(ours.topk_weights[:, -1], torch.tensor(1.0 if is_scaled else 0.4))


@pytest.mark.parametrize(
    "options",
    [shared_experts(2), {"renormalize": False}, {"routed_scaling_factor": None}],
    ids=["two", "as-scored", "no-factor"],
)
def test_other_shared_experts_are_sglangs(log: Path, options: dict[str, Any]):
    routed(log, "sigmoid", torch.randn(16), **options)
    assert told(log) == ["sglang(native)"]


def test_slots_that_each_rank_adds_are_sglangs(log: Path, monkeypatch: pytest.MonkeyPatch):
    """There SGLang asks a routing function for fewer experts than the configuration has."""
    asked: list[str] = []

    def forward_native(self: Any, hidden_states: Any, router_logits: Any, **given: Any) -> Any:
        route = self.topk_config.custom_routing_function
        if route is None:
            return asked.append("SGLang's own")
        return route(hidden_states, router_logits, 3, True)

    monkeypatch.setattr(topk.TopK, "forward_native", forward_native)
    layer = put(references(log), router("sigmoid", bias=torch.randn(16), **IN_GROUPS))
    layer._forward_method(torch.randn(7, 8), torch.randn(7, 16))
    assert asked == ["SGLang's own"]
