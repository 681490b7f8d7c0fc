"""The layers of a decode step as one CUDA graph: what our kernels save a model, whatever its host does.

    python -m benchmarks.bench_step [--csv FILE]

Norms, projections, rotation and activation of all layers of a model in bfloat16, in its order, so that a
kernel of ours runs between matrix products as it does in a served model; without attention, the last norm and
sampling. Sides: SGLang's own CUDA path; ours; ours without programmatic dependent launch; and three that
compute nothing: in place of each kernel a copy of at most what it must read and write, or an empty kernel,
both launched as ours are; and the matrix products alone. Device time of a replay by events, in turn;
host time of a replay: until the call returns, the device being idle. Medians and quartiles.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn.functional import linear

from benchmarks.about import about
from benchmarks.bench_ops import DTYPE, POSITIONS, random, set_server_args
from benchmarks.cell import kernel
from benchmarks.cuda_timing import captured
from benchmarks.tables import write_table
from benchmarks.workloads import MODELS, Model
from sglang_fl_nvidia.flagos import gated, launch, root_mean_square, rotation
from sglang_fl_nvidia.flagos.launch import compiled, overlap

#: Of the models that ``bench_engine`` serves.
LAYERS = {"Qwen2.5-0.5B": 24, "Llama-3-8B": 32}
TOKENS = (1, 16, 64)
REPLAYS, WARM_UPS = 300, 20
HEAD = [
    *("model", "tokens", "side", "device (µs)", "device, first quartile", "device, third quartile"),
    *("sglang / side", "host (µs)", "host, first quartile", "host, third quartile"),
]


@dataclass(frozen=True)
class Kernels:
    """What runs between a model's matrix products.

    Parameters
    ----------
    norm : of (x, weight, residual), returns both
    rotate : of (positions, query, key), returns both
    activate : silu_and_mul
    """

    norm: Callable[..., tuple[Tensor, Tensor]]
    rotate: Callable[..., tuple[Tensor, Tensor]]
    activate: Callable[[Tensor], Tensor]


def ours(model: Model) -> Kernels:
    norm, rotate = kernel("rms_norm"), kernel("rotary_embedding")
    cache = torch.randn(POSITIONS, model.head_size, device="cuda")
    rotation_of = model.head_size, model.is_neox_style
    return Kernels(
        lambda x, weight, residual: norm(x, weight, 1e-6, residual),
        lambda positions, query, key: rotate(positions, query, key, cache, *rotation_of),
        kernel("silu_and_mul"),
    )


def sglangs(model: Model) -> Kernels:
    from sglang.srt.layers.activation import SiluAndMul
    from sglang.srt.layers.layernorm import RMSNorm
    from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding

    layer = RMSNorm(model.hidden).to("cuda", DTYPE)
    sizes = (model.head_size, model.head_size, POSITIONS, 10000, model.is_neox_style, DTYPE)

    def norm(x: Tensor, weight: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        layer.weight.data = weight
        return layer.forward_cuda(x, residual)

    return Kernels(norm, RotaryEmbedding(*sizes).cuda().forward_cuda, SiluAndMul().forward_cuda)


@triton.jit(do_not_specialize=["count"])
def copy_kernel(x_ptr, out_ptr, count, BLOCK: tl.constexpr, OVERLAP: tl.constexpr):
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    overlap(OVERLAP)
    tl.store(out_ptr + at, tl.load(x_ptr + at, mask=at < count), mask=at < count)


@triton.jit
def empty_kernel(x_ptr, OVERLAP: tl.constexpr):
    overlap(OVERLAP)


def idle(model: Model, run: Callable[[Tensor, Tensor, int], object]) -> Kernels:
    """Pass on what is given, after ``run`` on where to read, where to write and how many elements."""
    activated = random(TOKENS[-1], model.intermediate)

    def norm(x: Tensor, weight: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        run(x, x, x.numel())
        return x, residual

    def rotate(positions: Tensor, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        run(query, query, query.numel() + key.numel())  # they lie in one tensor, which has the value as well
        return query, key

    def activate(x: Tensor) -> Tensor:
        out = activated[: len(x)]
        run(x, out, out.numel())
        return out

    return Kernels(norm, rotate, activate)


def copies(model: Model) -> Kernels:
    x = random(1, 16)
    copy = compiled(copy_kernel, x, x, 1, is_aligned=True, num_warps=4, BLOCK=1024)
    return idle(
        model,
        lambda x, out, count: copy(triton.cdiv(count, 1024), x.data_ptr(), out.data_ptr(), count),
    )


def empty(model: Model) -> Kernels:
    run = compiled(empty_kernel, random(1, 16), is_aligned=True, num_warps=1)
    return idle(model, lambda x, out, count: run(1, x.data_ptr()))


def none(model: Model) -> Kernels:
    return idle(model, lambda x, out, count: None)


def weights(model: Model) -> list[tuple[Tensor, ...]]:
    """Return each layer's: of query, key and value, of the output, of gate and up, of down; two norms'."""
    attention = model.heads * model.head_size
    packed = attention + 2 * model.key_heads * model.head_size
    shapes = (
        *((packed, model.hidden), (model.hidden, attention)),
        *((2 * model.intermediate, model.hidden), (model.hidden, model.intermediate)),
        *((model.hidden,), (model.hidden,)),
    )
    return [tuple(0.02 * random(*shape) for shape in shapes) for _ in range(LAYERS[model.name])]


def step(model: Model, layers: list[tuple[Tensor, ...]], given: tuple[Tensor, ...], run: Kernels) -> Tensor:
    """Run a model's layers on (x, residual, positions), as ``models/llama.py`` does."""
    x, residual, positions = given
    sizes = [heads * model.head_size for heads in (model.heads, model.key_heads, model.key_heads)]
    for packed, output, gate_and_up, down, first, second in layers:
        x, residual = run.norm(x, first, residual)
        query, key, _ = linear(x, packed).split(sizes, dim=-1)
        query, _ = run.rotate(positions, query, key)
        x, residual = run.norm(linear(query, output), second, residual)
        x = linear(run.activate(linear(x, gate_and_up)), down)
    return x


@contextmanager
def no_overlap() -> Iterator[None]:
    """Compile our kernels for a GPU without programmatic dependent launch."""
    modules, before = (root_mean_square, gated, rotation), launch._OVERLAP_SINCE
    caches = [module._launches.copy() for module in modules]
    for module in modules:
        module._launches.clear()
    launch._OVERLAP_SINCE = (99, 0)  # no GPU
    try:
        yield
    finally:
        launch._OVERLAP_SINCE = before
        for module, cache in zip(modules, caches, strict=True):
            module._launches.clear()
            module._launches.update(cache)


def measure(graphs: dict[str, torch.cuda.CUDAGraph]) -> dict[str, tuple[list[float], list[float]]]:
    """Return for each graph device and host times of its replays, in µs."""
    times: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in graphs}
    for turn in range(WARM_UPS + REPLAYS):
        for name, graph in graphs.items():
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda.synchronize()
            begin.record()
            start = time.perf_counter()
            graph.replay()
            host = time.perf_counter() - start
            end.record()
            torch.cuda.synchronize()
            if turn >= WARM_UPS:
                times[name][0].append(begin.elapsed_time(end) * 1e3)
                times[name][1].append(host * 1e6)
    return times


def rows(model: Model) -> Iterator[list]:
    layers = weights(model)
    kernels = {
        "sglang": sglangs(model),
        "ours": ours(model),
        "copies": copies(model),
        "empty kernels": empty(model),
        "matrix products alone": none(model),
    }
    for tokens in TOKENS:
        given = (
            random(tokens, model.hidden),
            random(tokens, model.hidden),
            torch.arange(tokens, device="cuda"),
        )
        calls = {name: [partial(step, model, layers, given, run)] for name, run in kernels.items()}
        graphs = {name: captured(call, 1) for name, call in calls.items()}
        with no_overlap():
            graphs["ours, no overlap"] = captured(calls["ours"], 1)
        times = measure(graphs)
        whole = statistics.median(times["sglang"][0])
        for name, (device, host) in times.items():
            low, middle, high = statistics.quantiles(device, n=4)
            host_low, host_middle, host_high = statistics.quantiles(host, n=4)
            yield [
                *(model.name, tokens, name, f"{middle:.1f}", f"{low:.1f}", f"{high:.1f}"),
                *(f"{whole / middle:.3f}", f"{host_middle:.1f}", f"{host_low:.1f}", f"{host_high:.1f}"),
            ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--csv", type=Path, help="write the table there too")
    options = parser.parse_args()
    set_server_args()
    table = []
    with torch.inference_mode():
        for model in MODELS:
            for row in rows(model) if model.name in LAYERS else ():
                print(*row, sep="  ", flush=True)
                table.append(row)
    if options.csv:
        write_table(options.csv, about(), HEAD, table)


if __name__ == "__main__":
    main()
