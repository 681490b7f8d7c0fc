"""Each op's Triton kernel beside SGLang's own CUDA path and others, on the device, in one run.

    python -m benchmarks.bench_ops [--op NAME] [--shape NAME] [--sides flagos,sglang] [--csv FILE]

A cell is one op at one shape, bfloat16. All sides run in turn, each as a CUDA graph of the same calls on
the same inputs, of which there are up to 24 sets, so that calls of 7 MB and more find none in the L2 cache;
they allocate their results themselves, and ops in place go on from their own results.
``copy`` is a device copy that moves as many bytes as the op must. Host time: of a call outside of a graph, at
16 tokens. A side that cannot run a cell has no figure; why is printed.
"""

import argparse
import math
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import torch
from sglang.srt import server_args

from benchmarks.about import about
from benchmarks.attention_step import Step
from benchmarks.cell import Cell, kernel, when_called
from benchmarks.cuda_timing import graph_times, host_time
from benchmarks.linear_attention import (
    causal_conv1d_fn,
    causal_conv1d_update,
    chunk_gated_delta_rule,
    fused_recurrent_gated_delta_rule_packed_decode,
    fused_sigmoid_gating_delta_rule_update,
)
from benchmarks.paged_attention import decode_attention, extend_attention
from benchmarks.tables import write_table
from benchmarks.workloads import (
    ATTENTIONS,
    EXPERTS,
    LINEAR_ATTENTIONS,
    MODELS,
    PAGED_ATTENTIONS,
    ROUTERS,
    TOKENS,
    TOKENS_OF_EXPERTS,
    Attention,
    Experts,
    Model,
    Router,
)

SIDES = ("flagos", "sglang", "flag_gems", "torch.compile", "liger", "fa3", "flashinfer", "copy")
DTYPE = torch.bfloat16
POSITIONS = 32768


def set_server_args() -> None:
    """Let SGLang's layers find the arguments of a server, which some of them ask when they are made.

    From 0.5.23 on its experts also ask for the group of GPUs that they are shared by.
    """
    arguments = server_args.ServerArgs(model_path="dummy", device="cuda")
    server_args.set_global_server_args_for_scheduler(arguments)
    with suppress(ImportError):
        from sglang.srt.runtime_context import get_parallel

        get_parallel().override_permanently(tp_group=None)


def compiled(forward: Callable) -> Callable:
    """SGLang's plain PyTorch path under ``torch.compile``, for any number of tokens."""
    return torch.compile(forward, dynamic=True)


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, device="cuda", dtype=DTYPE)


def silu_and_mul(model: Model) -> Iterator[Cell]:
    from sglang.srt.layers.activation import SiluAndMul

    layer = SiluAndMul()
    sides = {
        "flagos": kernel("silu_and_mul"),
        "sglang": layer.forward_cuda,
        "flag_gems": flag_gems("silu_and_mul"),
        "torch.compile": compiled(layer.forward_native),
        "liger": when_called(liger_silu),
    }
    width = model.intermediate
    for tokens in TOKENS:
        yield Cell(
            *("silu_and_mul", f"{model.name} {width}", tokens, 3 * tokens * width * 2),
            lambda tokens=tokens: (random(tokens, 2 * width),),
            sides,
        )


def flag_gems(op: str) -> Callable:
    """Return the call of FlagGems' kernel, which need not be installed."""
    return when_called(lambda: kernel(op, "flagos.flag_gems"))


def liger_silu() -> Callable:
    from liger_kernel.ops.swiglu import LigerSiLUMulFunction

    return lambda x: LigerSiLUMulFunction.apply(*x.chunk(2, dim=-1))


def norm_layer(model: Model) -> torch.nn.Module:
    from sglang.srt.layers.layernorm import RMSNorm

    layer = RMSNorm(model.hidden).to("cuda", DTYPE)
    layer.weight.data = 1 + 0.1 * random(model.hidden)
    return layer


def rms_norm(model: Model) -> Iterator[Cell]:
    layer, width = norm_layer(model), model.hidden
    weight, eps = layer.weight.data, layer.variance_epsilon
    ours, gems = kernel("rms_norm"), flag_gems("rms_norm")
    sides = {
        "flagos": lambda x: ours(x, weight, eps),
        "sglang": layer.forward_cuda,
        "flag_gems": lambda x: gems(x, weight, eps),
        "torch.compile": compiled(layer.forward_native),
        "liger": when_called(lambda: liger_norm(weight, eps)),
    }
    for tokens in TOKENS:
        yield Cell(
            *("rms_norm", f"{model.name} {width}", tokens, 2 * tokens * width * 2),
            lambda tokens=tokens: (random(tokens, width),),
            sides,
        )


def liger_norm(weight: torch.Tensor, eps: float) -> Callable:
    from liger_kernel.ops.rms_norm import LigerRMSNormFunction

    return lambda x: LigerRMSNormFunction.apply(x, weight, eps, 0.0, "llama", False)


def fused_add_rms_norm(model: Model) -> Iterator[Cell]:
    layer, width = norm_layer(model), model.hidden
    weight, eps = layer.weight.data, layer.variance_epsilon
    ours, gems = kernel("rms_norm"), flag_gems("rms_norm")
    sides = {
        "flagos": lambda x, residual: ours(x, weight, eps, residual),
        "sglang": layer.forward_cuda,
        "flag_gems": lambda x, residual: gems(x, weight, eps, residual),
        "torch.compile": compiled(layer.forward_native),
    }
    for tokens in TOKENS:
        yield Cell(
            *("rms_norm with residual", f"{model.name} {width}", tokens, 4 * tokens * width * 2),
            lambda tokens=tokens: (random(tokens, width), random(tokens, width)),
            sides,
        )


def rotary_embedding(model: Model) -> Iterator[Cell]:
    from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding

    size, style = model.head_size, model.is_neox_style
    layer = RotaryEmbedding(size, size, POSITIONS, 10000, style, DTYPE).cuda()
    ours, gems = kernel("rotary_embedding"), flag_gems("rotary_embedding")
    cache = layer.cos_sin_cache
    sides = {
        "flagos": lambda p, q, k: ours(p, q, k, cache, size, style),
        "sglang": layer.forward_cuda,
        "flag_gems": lambda p, q, k: gems(p, q, k, cache, size, style),
        "torch.compile": compiled(layer.forward_native),
    }
    if style:
        sides["liger"] = when_called(lambda: liger_rope(cache, size))
    heads, key_heads = model.heads, model.key_heads
    for tokens in TOKENS:
        yield Cell(
            *("rotary_embedding", f"{model.name} {heads}+{key_heads}x{size}", tokens),
            2 * tokens * (heads + key_heads) * size * 2,
            lambda tokens=tokens: (
                torch.randint(POSITIONS, (tokens,), device="cuda"),
                random(tokens, heads * size),
                random(tokens, key_heads * size),
            ),
            sides,
        )


def liger_rope(cache: torch.Tensor, size: int) -> Callable:
    """Liger takes gathered rows of full width; gathering them is not counted against it."""
    from liger_kernel.ops.rope import LigerRopeFunction

    full = torch.cat([cache[:, : size // 2]] * 2 + [cache[:, size // 2 :]] * 2, dim=-1).to(DTYPE)
    tables: dict[int, tuple] = {}

    def rotate(positions: torch.Tensor, query: torch.Tensor, key: torch.Tensor) -> object:
        tokens = len(positions)
        if tokens not in tables:
            rows = full[positions]
            tables[tokens] = (rows[None, :, :size].contiguous(), rows[None, :, size:].contiguous())
        q, k = (x.view(1, tokens, -1, size).transpose(1, 2) for x in (query, key))
        return LigerRopeFunction.apply(q, k, *tables[tokens])

    return rotate


def qk_norm_rope(attention: Attention) -> Iterator[Cell]:
    step, ours = Step.of(attention, POSITIONS, 4 * max(TOKENS)), kernel("qk_norm_rope")
    weights, eps = [norm.weight.data for norm in step.norms], step.norms[0].variance_epsilon
    facts = step.rotation.cos_sin_cache, attention.head_size, True

    def flagos(qkv: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor) -> object:
        q, k, v = step.parts(qkv)
        return ours(q, k, *weights, eps, positions, *facts, **step.cache_options(v, slots))

    def sglang(qkv: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor) -> object:
        parts = step.parts(qkv)
        step.sglang_norms(*parts[:2])
        return step.sglang_rotates_and_writes(positions, parts, slots)

    yield from step_cells("qk_norm_rope", step, {"flagos": flagos, "sglang": sglang})


def rotary_embedding_with_cache(attention: Attention) -> Iterator[Cell]:
    step = Step.of(attention, POSITIONS, 4 * max(TOKENS))
    ours = kernel("rotary_embedding", "flagos")
    facts = step.rotation.cos_sin_cache, attention.head_size, True

    def flagos(qkv: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor) -> object:
        q, k, v = step.parts(qkv)
        return ours(positions, q, k, *facts, **step.cache_options(v, slots))

    def sglang(qkv: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor) -> object:
        return step.sglang_rotates_and_writes(positions, step.parts(qkv), slots)

    yield from step_cells("rotary_embedding with cache", step, {"flagos": flagos, "sglang": sglang})


def step_cells(op: str, step: Step, sides: dict[str, Callable]) -> Iterator[Cell]:
    for tokens in TOKENS:
        yield Cell(
            *(op, step.name, tokens, step.moved(tokens)), lambda tokens=tokens: step.inputs(tokens), sides
        )


def layer_norm(model: Model) -> Iterator[Cell]:
    from sglang.srt.layers.layernorm import LayerNorm

    layer, width = LayerNorm(model.hidden, eps=1e-5).cuda(), model.hidden
    weight, bias, eps = layer.weight.data, layer.bias.data, 1e-5
    ours, gems = kernel("layer_norm"), flag_gems("layer_norm")
    sides = {
        "flagos": lambda x: ours(x, weight, bias, eps),
        "sglang": layer.forward_cuda,
        "flag_gems": lambda x: gems(x, weight, bias, eps),
        "torch.compile": compiled(layer.forward_native),
    }
    for tokens in TOKENS:
        yield Cell(
            *("layer_norm", f"{model.name} {width}", tokens, 2 * tokens * width * 2),
            lambda tokens=tokens: (random(tokens, width),),
            sides,
        )


def routing(router: Router) -> Iterator[Cell]:
    from sglang.srt.layers.moe import topk

    bias = 0.05 * torch.randn(router.experts, device="cuda") if router.is_biased else None
    if router.is_biased:
        op, run = "topk_sigmoid", kernel("topk_sigmoid")
        groups = {"num_expert_group": router.groups, "topk_group": router.chosen_groups}
        options = {"correction_bias": bias, **groups}
        own = lambda x: topk.biased_grouped_topk_gpu(x, x, bias, router.top_k, True, **groups)  # noqa: E731
    else:
        op, run, options = "topk_softmax", kernel("topk_softmax"), {}
        own = lambda x: topk.fused_topk(x, x, router.top_k, True)  # noqa: E731
    sides = {"flagos": lambda x: run(x, router.top_k, True, **options), "sglang": own}
    for tokens in TOKENS:
        yield Cell(
            *(op, f"{router.name} {router.top_k} of {router.experts}", tokens),
            tokens * (router.experts * 4 + router.top_k * 8),
            lambda tokens=tokens: (torch.randn(tokens, router.experts, device="cuda"),),
            sides,
        )


def fused_moe(layer: Experts) -> Iterator[Cell]:
    from sglang.srt.layers.moe.moe_runner.triton_utils.fused_moe import fused_experts_impl

    w13 = random(layer.experts, 2 * layer.intermediate, layer.hidden) * layer.hidden**-0.5
    w2 = random(layer.experts, layer.hidden, layer.intermediate) * layer.intermediate**-0.5
    ours, gems = kernel("fused_moe"), flag_gems("fused_moe")
    sides = {
        "flagos": lambda x, weights, ids: ours(x, w13, w2, weights, ids),
        "sglang": lambda x, weights, ids: fused_experts_impl(x, w13, w2, weights, ids, filter_expert=False),
        "flag_gems": lambda x, weights, ids: gems(x, w13, w2, weights, ids),
    }

    def inputs(tokens: int) -> tuple[torch.Tensor, ...]:
        scores, ids = torch.rand(tokens, layer.experts, device="cuda").topk(layer.top_k)
        return random(tokens, layer.hidden), scores.softmax(-1), ids.int()

    for tokens in TOKENS_OF_EXPERTS:
        touched = layer.experts * (1 - (1 - layer.top_k / layer.experts) ** tokens)  # on average
        moved = touched * 3 * layer.hidden * layer.intermediate * 2 + 2 * tokens * layer.hidden * 2
        yield Cell(
            *("fused_moe", f"{layer.name} {layer.top_k} of {layer.experts}", tokens, int(moved)),
            lambda tokens=tokens: inputs(tokens),
            sides,
        )


#: What makes an op's cells, and of what shapes.
OPS_OF = (
    ((silu_and_mul, rms_norm, fused_add_rms_norm, rotary_embedding, layer_norm), MODELS),
    ((qk_norm_rope, rotary_embedding_with_cache), ATTENTIONS),
    ((routing,), ROUTERS),
    ((fused_moe,), EXPERTS),
    ((fused_recurrent_gated_delta_rule_packed_decode, causal_conv1d_update), LINEAR_ATTENTIONS),
    ((fused_sigmoid_gating_delta_rule_update, causal_conv1d_fn), LINEAR_ATTENTIONS),
    ((chunk_gated_delta_rule,), LINEAR_ATTENTIONS),
    ((decode_attention, extend_attention), PAGED_ATTENTIONS),
)


def cells(only: str | None, part: str) -> Iterator[Cell]:
    for makers, shapes in OPS_OF:
        for make in makers:
            if only in (None, make.__name__):
                for shape in shapes:
                    if part in shape.name:
                        yield from make(shape)


def measure(cell: Cell, wanted: set[str]) -> dict[str, float]:
    count = 24 if cell.moved > 50e6 else 96 if cell.moved > 4e6 else 240
    inputs = cell.several_inputs()
    sources = [torch.empty(max(cell.moved // 4, 1), device="cuda", dtype=DTYPE) for _ in inputs]
    calls = {
        name: [lambda side=side, arguments=arguments: side(*arguments) for arguments in inputs]
        for name, side in cell.sides.items()
        if name in wanted
    }
    calls["copy"] = [lambda source=source: torch.empty_like(source).copy_(source) for source in sources]
    for name in list(calls):
        reason = why_not(calls[name][0])
        if reason:
            print(f"{cell.op} {cell.shape} T={cell.tokens}: {name}: {reason}", flush=True)
            del calls[name]
    return graph_times(calls, count)


def why_not(call: Callable) -> str | None:
    try:
        call()
        torch.cuda.synchronize()
    except Exception as error:  # noqa: BLE001 - it is printed beside the table
        return f"{type(error).__name__}: {error}"[:160]
    return None


def host(cell: Cell) -> dict[str, float]:
    arguments = cell.inputs()
    return {
        name: host_time(lambda side=side: side(*arguments))
        for name, side in cell.sides.items()
        if name in ("flagos", "sglang", "flag_gems") and why_not(lambda side=side: side(*arguments)) is None
    }


def row_of(cell: Cell, times: dict[str, float], hosts: dict[str, float]) -> list:
    ours = times["flagos"]
    return [
        *(cell.op, cell.shape, cell.tokens),
        *(f"{times[side]:.3f}" if side in times else "" for side in SIDES),
        f"{times['sglang'] / ours:.3f}" if "sglang" in times else "",
        f"{times['copy'] / ours:.3f}",
        *(f"{hosts[side]:.1f}" if side in hosts else "" for side in ("flagos", "sglang", "flag_gems")),
    ]


HEAD = [
    *("op", "shape", "tokens", *(f"{side} (µs)" for side in SIDES)),
    *("sglang / flagos", "copy / flagos", "host flagos (µs)", "host sglang (µs)", "host flag_gems (µs)"),
]


def summary(rows: list[list]) -> Iterator[str]:
    """Say for each op how it stands: geometric mean and least of the ratios, cells below 1."""
    ratio, of_copy = HEAD.index("sglang / flagos"), HEAD.index("copy / flagos")
    for op in dict.fromkeys(row[0] for row in rows):
        ratios = [float(row[ratio]) for row in rows if row[0] == op and row[ratio]]
        large = [float(row[of_copy]) for row in rows if row[0] == op and row[2] >= 4096]
        if ratios:
            mean = math.exp(sum(map(math.log, ratios)) / len(ratios))
            beside_copy = f"; from 4096 tokens on at least {min(large):.3f} of a copy" if large else ""
            yield (
                f"{op}: {mean:.3f} of SGLang's own (geometric mean of {len(ratios)} cells), "
                f"least {min(ratios):.3f}, {sum(ratio < 1 for ratio in ratios)} below 1{beside_copy}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--op", help="only this function of this file: silu_and_mul, rms_norm, routing, ...")
    parser.add_argument("--shape", default="", help="only shapes whose name has this in it")
    parser.add_argument("--sides", default=",".join(SIDES), help="those to measure; flagos always is")
    parser.add_argument("--csv", type=Path, help="write the table there too")
    options = parser.parse_args()
    set_server_args()
    print(about(), flush=True)
    wanted = {"flagos", *options.sides.split(",")}
    torch._dynamo.config.recompile_limit = 64  # one for each model, and one token is another program
    rows = []
    with torch.inference_mode():
        for cell in cells(options.op, options.shape):
            times = measure(cell, wanted)
            if "flagos" not in times:
                continue
            rows.append(row_of(cell, times, host(cell) if cell.tokens == 16 else {}))
            print(*rows[-1], sep="  ", flush=True)
    print(*summary(rows), sep="\n")
    if options.csv:
        write_table(options.csv, about(), HEAD, rows)


if __name__ == "__main__":
    main()
