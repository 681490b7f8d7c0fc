"""The kernels of ``fused_moe``: each tile, and what does not fit."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sglang_fl.errors import ContractError
from sglang_fl.ops import OPS
from sglang_fl.vendor import load_target
from sglang_fl_nvidia.flagos import expert_tiles
from sglang_fl_nvidia.flagos import fused_moe as experts

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OP = OPS["fused_moe"]
kernel: Callable[..., Tensor] = load_target("sglang_fl_nvidia.flagos.fused_moe:fused_moe")


@pytest.fixture(autouse=True)
def fresh_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(experts, "_launches", {})


def assert_experts_right(tokens: int, number: int, width: int, inner: int) -> None:
    top_k = 2
    x = torch.randn(tokens, width, device=DEVICE, dtype=torch.float16)
    w13, w2 = (
        torch.randn(number, *shape, device=DEVICE).mul(shape[1] ** -0.5).half()
        for shape in ((2 * inner, width), (width, inner))
    )
    ids = torch.randint(number, (tokens, top_k), device=DEVICE, dtype=torch.int32)
    ids[1::5, 0], ids[2::5] = -1, number
    given = {"hidden_states": x, "w13_weight": w13, "w2_weight": w2}
    given |= {"topk_weights": torch.rand(tokens, top_k, device=DEVICE), "topk_ids": ids}
    got = kernel(**given)
    exactly = {name: t.double() if t.is_floating_point() else t for name, t in given.items()}
    exact = OP.reference(**exactly)
    size = OP.magnitude(exact, **exactly)
    assert ((got.double() - exact).abs() <= OP.bound.of(x.dtype) * torch.finfo(x.dtype).eps * size).all()


@pytest.mark.parametrize(
    ("tokens", "number", "few"),
    [(5, 16, 32), (5, 16, 0), (40, 5, 0), (40, 2, 0), (70, 2, 0), (33, 1, 0)],
    ids=["not-sorted", "16-rows", "32-rows", "64-rows", "128-rows", "one-expert"],
)
@pytest.mark.parametrize("long", [0, 1 << 30], ids=["in-groups", "last-tiles-halved"])
def test_every_tile_of_experts(
    tokens: int, number: int, few: int, long: int, monkeypatch: pytest.MonkeyPatch
):
    """Widths that no tile divides; some tokens have no expert, some an expert twice."""
    monkeypatch.setattr(expert_tiles, "LONG", long)
    monkeypatch.setattr(experts, "FEW", few)
    monkeypatch.setattr(experts, "SORT_BLOCK", 32)
    assert_experts_right(tokens, number, 72, 40)


@pytest.mark.parametrize(
    "first",
    [expert_tiles.FIRST_FEW, expert_tiles.FIRST_FEW_WIDEST, expert_tiles.FIRST_FEW_ODD],
    ids=str,
)
@pytest.mark.parametrize(
    "second",
    [expert_tiles.SECOND_FEW, expert_tiles.SECOND_FEW_LARGE, expert_tiles.SECOND_LONG],
    ids=str,
)
def test_every_tile_of_assignments_that_are_not_sorted(
    first: expert_tiles.Tile, second: expert_tiles.Tile, monkeypatch: pytest.MonkeyPatch
):
    """Several programs of each layer, of which the last of the same columns adds up."""
    monkeypatch.setattr(experts, "first_few", lambda width: first)
    monkeypatch.setattr(experts, "second_few", lambda width, inner: second)
    assert_experts_right(7, 30, 300, 72)


@pytest.mark.parametrize(("tokens", "top_k", "number"), [(3, 0, 4), (0, 2, 4), (3, 0, 0)])
def test_tokens_without_an_expert_and_no_tokens_have_zeros(tokens: int, top_k: int, number: int):
    given = {"hidden_states": (tokens, 16), "w13_weight": (number, 16, 16), "w2_weight": (number, 16, 8)}
    tensors = {name: torch.ones(shape, device=DEVICE) for name, shape in given.items()}
    ids = torch.zeros(tokens, top_k, device=DEVICE, dtype=torch.int32)
    got = kernel(**tensors, topk_weights=torch.ones(tokens, top_k, device=DEVICE), topk_ids=ids)
    assert torch.equal(got, torch.zeros(tokens, 16, device=DEVICE))


@pytest.mark.parametrize(
    "wrong",
    [
        {"w2_bias": (3, 7)},
        {"w13_bias": (3, 8)},
        {"w2_bias": (2, 16)},
        {"gemm1_limit": 7.0},
        {"w2_weight": (3, 16, 9)},
    ],
    ids=str,
)
def test_experts_that_do_not_fit_each_other_are_refused_after_a_right_call_too(wrong: dict[str, object]):
    right = {"hidden_states": (2, 16), "w13_weight": (3, 16, 16), "w2_weight": (3, 16, 8)}
    right |= {"w13_bias": (3, 16), "w2_bias": (3, 16), "topk_weights": (2, 1)}
    ids = torch.zeros(2, 1, device=DEVICE, dtype=torch.int32)

    def tensors(shapes: dict[str, object]) -> dict[str, object]:
        return {n: torch.ones(v, device=DEVICE) if isinstance(v, tuple) else v for n, v in shapes.items()}

    kernel(**tensors(right), topk_ids=ids)
    with pytest.raises(ContractError, match="fused_moe"):
        kernel(**tensors(right | wrong), topk_ids=ids)
