"""Our Triton kernels: in Triton's interpreter where there is no GPU, and what only a GPU can show."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sglang_fl.conformance import check_case, error_in_units
from sglang_fl.errors import ContractError, UnsupportedError
from sglang_fl.ops import OPS, Case, Op
from sglang_fl.vendor import OpImpl, load_target
from sglang_fl_nvidia import NVIDIA

OURS = [impl for impl in NVIDIA.impls if impl.target.startswith("sglang_fl_nvidia.flagos.")]
CASES = [(impl, case) for impl in OURS for case in OPS[impl.op].cases]
HAS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAS_GPU else "cpu"
#: The interpreter cuts float32 off to bfloat16 instead of rounding it, so there a GPU alone tells.
DTYPES = [torch.float16, torch.float32, *([torch.bfloat16] if HAS_GPU else [])]


def kernel(op: str) -> Callable[..., Tensor]:
    return load_target(f"sglang_fl_nvidia.flagos.{op}:{op}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("impl", "case"), CASES, ids=[f"{impl.op}-{case}" for impl, case in CASES])
def test_kernel_keeps_its_contract_and_takes_every_case(impl: OpImpl, case: Case, dtype: torch.dtype):
    op: Op = OPS[impl.op]
    # None would say that the kernel refused: ours take all options of their contracts.
    assert check_case(op, load_target(impl.target), case, dtype, DEVICE) == []


@pytest.mark.parametrize("op", [impl.op for impl in OURS])
def test_float64_is_refused_before_anything_is_written(op: str):
    case = next(case for case in OPS[op].cases if not case.name.startswith("empty"))
    arguments = case.arguments(torch.float64, DEVICE)
    before = {name: value.clone() for name, value in arguments.items() if isinstance(value, Tensor)}
    with pytest.raises(UnsupportedError, match="float64"):
        kernel(op)(**arguments)
    assert all(torch.equal(arguments[name], value) for name, value in before.items())


def test_a_weight_of_another_width_is_refused_after_a_right_one_too():
    x, weight = torch.ones(3, 64, device=DEVICE), torch.ones(64, device=DEVICE)
    for call in (
        lambda w: kernel("rms_norm")(x, w, 1e-6),
        lambda w: kernel("layer_norm")(x, w, None, 1e-6),
    ):
        call(weight)
        for wrong in (weight[:32], torch.ones(128, device=DEVICE)[::2]):
            with pytest.raises(ContractError, match="does not fit"):
                call(wrong)


def test_no_rows_of_any_strides_are_no_rows():
    x = torch.ones(0, 128, device=DEVICE)[:, ::2]
    weight = torch.ones(64, device=DEVICE)
    assert kernel("layer_norm")(x, weight, None, 1e-6).shape == (0, 64)
    normed, total = kernel("rms_norm")(x, weight, 1e-6, x, post_residual_addition=x)
    assert (normed.shape, total.shape) == ((0, 64), (0, 64))


def test_a_cache_of_any_strides_is_read_as_it_lies():
    wide = torch.rand(32, 128, device=DEVICE)
    x = torch.randn(3, 64, device=DEVICE)
    arguments = (torch.arange(3, device=DEVICE), x.clone(), x.clone())
    for cache in (wide[:, :64].contiguous(), wide[:, :64]):
        got = kernel("rotary_embedding")(*(a.clone() for a in arguments), cache, 64, True)
        wanted = OPS["rotary_embedding"].reference(*arguments, cache, 64, True)
        assert all(torch.allclose(g, w, atol=1e-6) for g, w in zip(got, wanted, strict=True))


def test_groups_of_one_expert_are_experts():
    logits, bias = torch.randn(5, 16, device=DEVICE), 0.1 * torch.randn(16, device=DEVICE)
    options = {"correction_bias": bias, "num_expert_group": 16, "topk_group": 8}
    _, ids = kernel("topk_sigmoid")(logits, 4, True, **options)
    _, wanted = OPS["topk_sigmoid"].reference(logits, 4, True, **options)
    assert torch.equal(ids.sort(-1).values, wanted.sort(-1).values)


def test_a_residual_that_is_not_like_x_is_refused():
    x = torch.ones(3, 64, device=DEVICE)
    with pytest.raises(ContractError, match="residual"):
        kernel("rms_norm")(x, x[0], 1e-6, x.half())


@pytest.mark.parametrize("shape", [(3, 63), ()], ids=str)
def test_a_gated_activation_refuses_what_has_no_halves(shape: tuple[int, ...]):
    with pytest.raises(ContractError, match="even last axis"):
        kernel("silu_and_mul")(torch.ones(shape, device=DEVICE))


def test_more_experts_than_there_are_is_refused():
    with pytest.raises(ContractError, match="top_k 9"):
        kernel("topk_softmax")(torch.ones(3, 8, device=DEVICE), 9, True)


def test_of_equal_scores_the_first_experts_are_chosen():
    weights, ids = kernel("topk_softmax")(torch.zeros(2, 16, device=DEVICE), 4, True)
    assert ids.tolist() == [[0, 1, 2, 3]] * 2
    assert weights.tolist() == [[0.25] * 4] * 2


def test_tensors_at_odd_addresses_are_taken_after_aligned_ones():
    """A kernel that was compiled for aligned tensors must not be launched on others."""
    x = torch.randn(5, 256, device=DEVICE)
    shifted = torch.empty(5 * 256 + 1, device=DEVICE)[1:].view(5, 256).copy_(x)
    for op, rest in (("silu_and_mul", ()), ("rms_norm", (torch.ones(256, device=DEVICE), 1e-6))):
        exact = OPS[op].reference(x.double(), *rest).cpu()
        for given in (x, shifted):
            assert error_in_units(kernel(op)(given, *rest).cpu(), exact) <= OPS[op].bound.single


@pytest.mark.gpu
def test_offsets_past_32_bits():
    rows, width = 70_000, 65_536  # 4.6 G elements
    x = torch.zeros(rows, width, dtype=torch.float16, device="cuda")
    x[-3:] = torch.randn(3, width, device="cuda")
    result = kernel("silu_and_mul")(x)[-3:]
    expected = OPS["silu_and_mul"].reference(x[-3:].double())
    assert error_in_units(result.cpu(), expected.cpu()) <= 0.55


MANY_TOKENS = {
    "rms_norm": lambda x: (x, torch.ones(128, device=x.device), 1e-6),
    "rotary_embedding": lambda x: (
        *(torch.arange(len(x), device=x.device) % 64, x.clone(), x.clone()),
        *(torch.rand(64, 128, device=x.device), 128, True),
    ),
    # Ids are left out: which of two equal scores is chosen is open, and of a million rows some have them.
    "topk_softmax": lambda x: (x, 8, True),
}


@pytest.mark.parametrize(
    "tokens", [1031, pytest.param(1_000_003, marks=pytest.mark.gpu)], ids=["thousands", "a-million"]
)
@pytest.mark.parametrize("op", MANY_TOKENS)
def test_many_tokens(op: str, tokens: int):
    generator = torch.Generator(DEVICE).manual_seed(1)
    x = torch.randn(tokens, 128, device=DEVICE, generator=generator).to(DTYPES[0])
    arguments = MANY_TOKENS[op](x)
    kept = [a.clone() if isinstance(a, Tensor) else a for a in arguments]
    got, wanted = (
        [r.float() for r in ((result,) if isinstance(result, Tensor) else result) if r.is_floating_point()]
        for result in (kernel(op)(*arguments), OPS[op].reference(*kept))
    )
    if op == "topk_softmax":
        got, wanted = ([r.sort(-1).values for r in results] for results in (got, wanted))
    # Both round a float32 result; where it lies between two they may choose either.
    unit = torch.finfo(DTYPES[0]).eps
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=unit, atol=unit * 1e-2)


@pytest.mark.gpu
def test_kernels_are_launched_on_the_current_stream():
    x = torch.randn(4096, 8192, device="cuda")
    expected = kernel("silu_and_mul")(x)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # what is launched on another stream overtakes this
        y = x * 1
        x.zero_()
        result = kernel("silu_and_mul")(y)
    stream.synchronize()
    assert torch.equal(result, expected)


@pytest.mark.gpu
@pytest.mark.parametrize("op", [impl.op for impl in OURS])
def test_a_graph_replays_on_new_inputs(op: str):
    """Also under programmatic dependent launch: each kernel waits for the copies before it."""
    case = next(case for case in OPS[op].cases if case.name.startswith(("one-token", "odd-tokens")))
    first = case.arguments(torch.bfloat16, "cuda", seed=1)
    kernel(op)(**case.arguments(torch.bfloat16, "cuda", seed=2))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    static = {name: v.clone() if isinstance(v, Tensor) else v for name, v in first.items()}
    given = {name: v.clone() if isinstance(v, Tensor) else v for name, v in static.items()}
    with torch.cuda.graph(graph):
        for name, value in static.items():
            if isinstance(value, Tensor):
                given[name].copy_(value)
        captured = kernel(op)(**given)
    for seed in (3, 4):
        fresh = case.arguments(torch.bfloat16, "cuda", seed=seed)
        for name, value in fresh.items():
            if isinstance(value, Tensor):
                static[name].copy_(value)
        graph.replay()
        eager = kernel(op)(**fresh)
        pairs = zip(*((r,) if isinstance(r, Tensor) else r for r in (captured, eager)), strict=True)
        assert all(torch.equal(got, want) for got, want in pairs)
