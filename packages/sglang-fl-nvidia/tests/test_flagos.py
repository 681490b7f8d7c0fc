"""Our Triton kernels: in Triton's interpreter where there is no GPU, and what only a GPU can show."""

from collections.abc import Callable
from types import ModuleType

import pytest
import torch
from torch import Tensor

from sglang_fl.conformance import check_case, error_in_units
from sglang_fl.errors import ContractError, UnsupportedError
from sglang_fl.ops import OPS, Case, Op
from sglang_fl.vendor import OpImpl, load_target
from sglang_fl_nvidia import NVIDIA
from sglang_fl_nvidia.flagos import gated, heads, layer_norm, rotation

#: The functions with the ops' names, which take all options.
OURS = [impl for impl in NVIDIA.impls if impl.target == f"sglang_fl_nvidia.flagos.{impl.op}:{impl.op}"]
CASES = [(impl, case) for impl in OURS for case in OPS[impl.op].cases]
HAS_GPU = torch.cuda.is_available()
DEVICE = "cuda" if HAS_GPU else "cpu"
#: The interpreter cuts float32 off to bfloat16 instead of rounding it, so there a GPU alone tells.
DTYPES = [torch.float16, torch.float32, *([torch.bfloat16] if HAS_GPU else [])]
#: Options of a contract that a kernel of ours does not take: where it runs, trees of drafts are SGLang's, and
#: so is what is written in 8 bit.
NOT_TAKEN = {
    "extend_attention": {"custom_mask", "mask_indptr"},
    "kv_cache_write": {"k_scale", "v_scale"},
}


def kernel(op: str) -> Callable[..., Tensor]:
    return load_target(f"sglang_fl_nvidia.flagos.{op}:{op}")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("impl", "case"), CASES, ids=[f"{impl.op}-{case}" for impl, case in CASES])
def test_kernel_keeps_its_contract_and_takes_every_case(impl: OpImpl, case: Case, dtype: torch.dtype):
    op: Op = OPS[impl.op]
    is_taken = NOT_TAKEN.get(op.name, set()).isdisjoint(case.arguments(dtype))
    # None says that the kernel refused.
    assert check_case(op, load_target(impl.target), case, dtype, DEVICE) == ([] if is_taken else None)


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
        with pytest.raises(ContractError, match="does not fit"):
            call(weight[:32])
        with pytest.raises(UnsupportedError, match=r"dense, not with strides \(2,\)"):
            call(torch.ones(128, device=DEVICE)[::2])


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


def test_groups_and_members_that_are_padded_are_never_chosen():
    logits = torch.randn(6, 15, device=DEVICE)
    logits[0] = float("nan")
    logits[1] = 0.0  # of equal groups and experts those of the lower numbers
    bias = torch.zeros(30, device=DEVICE)[::2]
    options = {"correction_bias": bias, "num_expert_group": 3, "topk_group": 2}
    _, ids = kernel("topk_sigmoid")(logits, 4, True, **options)
    _, wanted = OPS["topk_sigmoid"].reference(logits, 4, True, **options)
    assert torch.equal(ids[2:], wanted[2:])
    assert ids[1].tolist() == [0, 1, 2, 3]
    assert len(set(ids[0].tolist())) == 4
    assert ids.min() >= 0
    assert ids.max() < 15


def test_a_bias_is_read_as_it_lies():
    logits, wide = torch.randn(5, 16, device=DEVICE), torch.randn(16, 3, device=DEVICE)
    for bias in (wide[:, 1].contiguous(), wide[:, 1]):
        _, ids = kernel("topk_sigmoid")(logits, 4, True, correction_bias=bias)
        _, wanted = OPS["topk_sigmoid"].reference(logits, 4, True, correction_bias=bias)
        assert torch.equal(ids, wanted)


def test_more_groups_than_can_be_compared_are_refused():
    with pytest.raises(UnsupportedError, match="at most 64 groups"):
        kernel("topk_sigmoid")(torch.ones(2, 128, device=DEVICE), 4, True, num_expert_group=128, topk_group=8)


def test_no_heads_are_none_to_turn():
    positions, cache = torch.arange(3, device=DEVICE), torch.rand(8, 32, device=DEVICE)
    none = torch.ones(3, 0, device=DEVICE)
    query, key = kernel("rotary_embedding")(positions, none, none, cache, 32, True)
    assert (query.shape, key.shape) == ((3, 0), (3, 0))


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
#: In the interpreter enough for 33 programs or more; past 512 rows those of a norm have other tiles.
TOKENS = {"rms_norm": 1031, "rotary_embedding": 131, "topk_softmax": 131}


@pytest.mark.parametrize(
    ("op", "tokens"),
    [*TOKENS.items(), *(pytest.param(op, 1_000_003, marks=pytest.mark.gpu) for op in MANY_TOKENS)],
)
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


def _with_tiles(monkeypatch: pytest.MonkeyPatch, module: ModuleType, **limits: int) -> None:
    """Have a kernel take the tiles that it takes past other limits than its own."""
    for name, limit in limits.items():
        monkeypatch.setattr(module, name, limit)
    monkeypatch.setattr(module, "_launches", {})


@pytest.mark.parametrize("width", [4000, 5000], ids=["cut-into-wide-tiles", "not-so"])
@pytest.mark.parametrize(("short", "cached"), [(1 << 30, 1 << 30), (0, 1 << 30), (0, 0)])
def test_every_tile_of_a_gated_activation(
    width: int, short: int, cached: int, monkeypatch: pytest.MonkeyPatch
):
    _with_tiles(monkeypatch, gated, SHORT=short, CACHED=cached)
    x = torch.randn(9, 2 * width, device=DEVICE)
    exact = OPS["silu_and_mul"].reference(x.double()).cpu()
    assert error_in_units(kernel("silu_and_mul")(x).cpu(), exact) <= OPS["silu_and_mul"].bound.single


@pytest.mark.parametrize(
    ("width", "dtype"),
    [(100, torch.float32), (4000, torch.float32), (6000, torch.float16), (9000, torch.float32)],
    ids=["narrow", "in-pieces", "long", "too-long-for-stages"],
)
@pytest.mark.parametrize("rows", [1, 5, 7, 8, 17])
def test_every_tile_of_a_layer_norm(
    width: int, dtype: torch.dtype, rows: int, monkeypatch: pytest.MonkeyPatch
):
    _with_tiles(monkeypatch, layer_norm, MANY=0, MANY_ROWS=0, LONG=6000, MOST_TURNS=3, LATER_TURNS=2)
    monkeypatch.setattr(layer_norm, "multiprocessors", lambda device: 1)
    x = torch.randn(rows, width, device=DEVICE, dtype=dtype)
    weight, bias = (torch.randn(width, device=DEVICE) for _ in range(2))
    got = kernel("layer_norm")(x, weight, bias, 1e-5)
    op = OPS["layer_norm"]
    exactly = [t.double() for t in (x, weight, bias)]
    exact = op.reference(*exactly, 1e-5)
    # An element is a sum of terms that may cancel, so its own size is no measure of its error.
    size = op.magnitude(exact, *exactly, 1e-5)
    assert ((got.double() - exact).abs() <= op.bound.of(dtype) * torch.finfo(dtype).eps * size).all()


@pytest.mark.parametrize("op", ["layer_norm", "rms_norm", "gemma_rms_norm"])
def test_rows_of_no_elements_are_refused(op: str):
    x, weight = torch.empty(3, 0, device=DEVICE), torch.empty(0, device=DEVICE)
    rest = (None, 1e-6) if op == "layer_norm" else (1e-6,)
    with pytest.raises(UnsupportedError, match="rows of 1 to 65536"):
        kernel(op)(x, weight, *rest)


@pytest.mark.parametrize("many", [0, 1 << 30])
@pytest.mark.parametrize("is_neox", [True, False])
@pytest.mark.parametrize(("heads", "key_heads", "size"), [(5, 2, 64), (40, 1, 96), (1, 1, 16)], ids=str)
def test_every_tile_of_a_rotation(
    heads: int, key_heads: int, size: int, is_neox: bool, many: int, monkeypatch: pytest.MonkeyPatch
):
    _with_tiles(monkeypatch, rotation, MANY=many)
    positions, cache = torch.tensor([3, 0, 9, 1, 5], device=DEVICE), torch.rand(10, size, device=DEVICE)
    query, key = (torch.randn(5, n * size, device=DEVICE) for n in (heads, key_heads))
    rest = cache.double(), size, is_neox
    exact = OPS["rotary_embedding"].reference(positions, query.double(), key.double(), *rest)
    got = kernel("rotary_embedding")(positions, query, key, cache, size, is_neox)
    for one, other in zip(got, exact, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("many", [0, 1 << 30])
@pytest.mark.parametrize("is_neox", [True, False])
@pytest.mark.parametrize(
    ("counts", "size", "rotary_dim", "values"),
    [((5, 2), 64, 64, 2 * 64), ((40, 1), 96, 32, 17), ((3, 3), 16, 16, 2500), ((12, 8), 128, 64, 8 * 128)],
    ids=str,
)
def test_every_tile_of_norms_with_rotation(
    counts: tuple[int, int],
    size: int,
    rotary_dim: int,
    values: int,
    is_neox: bool,
    many: int,
    monkeypatch: pytest.MonkeyPatch,
):
    _with_tiles(monkeypatch, heads, MANY=many)
    positions = torch.tensor([3, 0, 9, 1, 5], device=DEVICE)
    query, key = (torch.randn(5, n * size, device=DEVICE) for n in counts)
    pools = [torch.zeros(8, width, device=DEVICE) for width in (key.shape[1], values)]
    cache = torch.rand(10, rotary_dim, device=DEVICE)
    arguments = {
        "query": query,
        "key": key,
        "q_weight": torch.rand(size, device=DEVICE),
        "k_weight": torch.rand(size, device=DEVICE),
        "eps": 1e-6,
        "positions": positions,
        "cos_sin_cache": cache,
        "head_size": size,
        "is_neox_style": is_neox,
        "value": torch.randn(5, values, device=DEVICE),
        "k_buffer": pools[0],
        "v_buffer": pools[1],
        "cache_loc": torch.tensor([7, 2, 0, 5, 3], device=DEVICE),
    }
    exactly = {
        name: value.double() if isinstance(value, Tensor) and value.is_floating_point() else value
        for name, value in arguments.items()
    }
    exact = OPS["qk_norm_rope"].reference(**exactly)
    got = kernel("qk_norm_rope")(**arguments)
    results = (*got, *pools), (*exact, exactly["k_buffer"], exactly["v_buffer"])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("op", ["qk_norm_rope", "rotary_embedding"])
def test_a_kv_cache_that_does_not_fit_is_refused_before_anything_is_written(op: str):
    case = next(case for case in OPS[op].cases if case.name == "kv-cache-neox")
    width = case.arguments(torch.float32, DEVICE)["value"].shape[1]
    twice = torch.zeros(18, width // 2, device=DEVICE)
    for changed, error, match in (
        ({"cache_loc": None}, ContractError, f"{op}: to write the KV cache it needs cache_loc too"),
        ({"cache_loc": torch.arange(4, device=DEVICE)}, ContractError, "for each of 9 tokens"),
        (
            {"v_buffer": torch.zeros(13, 8, device=DEVICE)},
            ContractError,
            "9 slots of v_buffer .* do not hold",
        ),
        ({"v_buffer": torch.zeros(9, 8, device=DEVICE)}, ContractError, "13 slots, and v_buffer has 9"),
        ({"value": twice}, ContractError, f"{op}: value .* a row for each of 9 tokens"),
        ({"value": twice.flatten()}, ContractError, f"{op}: value .* a row for each of 9 tokens"),
        ({"key": twice}, ContractError, f"{op}: .* is not 9 rows of heads"),
        ({"k_buffer": torch.zeros(13, 64, 2, device=DEVICE).mT}, UnsupportedError, "slots that are dense"),
    ):
        arguments = case.arguments(torch.float32, DEVICE) | changed
        before = {name: value.clone() for name, value in arguments.items() if isinstance(value, Tensor)}
        with pytest.raises(error, match=match):
            kernel(op)(**arguments)
        if error is ContractError:
            with pytest.raises(error, match=match):
                OPS[op].reference(**arguments)
        assert all(torch.equal(arguments[name], value) for name, value in before.items())


@pytest.mark.parametrize("op", ["qk_norm_rope", "rotary_embedding"])
def test_a_part_of_a_kv_cache_is_refused_without_tokens_too(op: str):
    case = next(case for case in OPS[op].cases if case.name == "kv-cache-empty")
    arguments = case.arguments(torch.float32, DEVICE) | {"k_buffer": None}
    for computes in (kernel(op), OPS[op].reference):
        with pytest.raises(ContractError, match="it needs k_buffer too"):
            computes(**arguments)


@pytest.mark.parametrize("name", ["q_weight", "k_weight"])
def test_a_strided_weight_of_a_norm_with_rotation_is_refused(name: str):
    """A copy of it could still be on its way when the kernel loads it."""
    case = next(case for case in OPS["qk_norm_rope"].cases if case.name == "kv-cache-neox")
    arguments = case.arguments(torch.float32, DEVICE)
    arguments[name] = arguments[name].repeat_interleave(2)[::2]
    pool = arguments["k_buffer"].clone()
    with pytest.raises(UnsupportedError, match="weights that are dense"):
        kernel("qk_norm_rope")(**arguments)
    assert torch.equal(arguments["k_buffer"], pool)


def test_a_kernel_that_only_rotates_leaves_what_it_does_not_rotate():
    """In place, so the rest of a head is neither written nor lost."""
    case = next(case for case in OPS["rotary_embedding"].cases if case.name == "kv-cache-partial")
    arguments = case.arguments(torch.float32, DEVICE)
    query = arguments["query"].clone()
    turned, _ = kernel("rotary_embedding")(**arguments)
    rest = slice(arguments["cos_sin_cache"].shape[1], None)
    both = (x.unflatten(1, (-1, arguments["head_size"]))[..., rest] for x in (turned, query))
    assert torch.equal(*both)
    assert turned is arguments["query"]


def test_query_and_key_of_two_dtypes_are_both_turned_or_neither():
    positions, cache = torch.arange(3, device=DEVICE), torch.rand(8, 32, device=DEVICE)
    query, key = torch.randn(3, 64, device=DEVICE), torch.randn(3, 32, device=DEVICE).half()
    wanted = OPS["rotary_embedding"].reference(positions, query, key, cache, 32, True)
    before = query.clone()
    with pytest.raises(UnsupportedError, match="float64"):
        kernel("rotary_embedding")(positions, query, key.double(), cache, 32, True)
    assert torch.equal(query, before)
    got = kernel("rotary_embedding")(positions, query, key, cache, 32, True)
    assert got[0] is query
    assert got[1] is key
    torch.testing.assert_close(got[0], wanted[0])
    torch.testing.assert_close(got[1], wanted[1], rtol=1e-3, atol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("tokens", [1, 64, 4096])
def test_kernels_that_overlap_compute_what_they_compute_alone(tokens: int):
    """Each reads what one kernel before it wrote, or two, while that one may still run."""
    positions = torch.arange(tokens, device="cuda")
    cache, weight = torch.rand(tokens, 64, device="cuda"), torch.rand(512, device="cuda").half()

    def chain(pause: Callable[[], None]) -> list[Tensor]:
        generator = torch.Generator("cuda").manual_seed(tokens)
        x, residual = torch.randn(2, tokens, 512, device="cuda", generator=generator).half()
        for _ in range(20):
            kernel("rms_norm")(x, weight, 1e-6, residual)
            pause()
            kernel("rotary_embedding")(positions, x, residual, cache, 64, True)
            pause()
            x = kernel("layer_norm")(x, weight, None, 1e-6)
            pause()
            kernel("silu_and_mul")(x)
            pause()
        return [x, residual]

    alone = chain(torch.cuda.synchronize)
    together = chain(lambda: None)
    assert all(torch.equal(one, other) for one, other in zip(alone, together, strict=True))


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
    plain = ("one-token", "odd-tokens", "one-request")
    case = next(case for case in OPS[op].cases if case.name.startswith(plain))
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
