"""A layer call with the plugin beside the same call without it, in one run.

Both sides run the same kernel on one row. Without the plugin, SGLang's own dispatch calls it through
a forward that is registered with SGLang for out-of-tree platforms and that reads from the layer what
SGLang's forwards read. What differs is the way to the kernel. Each layer is measured with the
reference of its op, and with a kernel that returns at once: there is no faster one, so that ratio is
the worst that can be. Ratio: the median over the rounds, in each of which both sides run in turn.

    python -m benchmarks.bench_dispatch [--rounds N] [--calls N] [--csv FILE]
"""

import argparse
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")

import torch
from sglang.kernels.fused_op import BaseFusedOp
from sglang.srt.layers.activation import GeluAndMul, NewGELU, SiluAndMul
from sglang.srt.layers.layernorm import Gemma3RMSNorm, GemmaRMSNorm, LayerNorm, RMSNorm
from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding
from sglang.srt.layers.rotary_embedding.mrope import MRotaryEmbedding
from sglang.srt.plugins import load_plugins

from benchmarks.about import about
from benchmarks.tables import write_table
from sglang_fl.dispatch.own_path import OwnPath
from sglang_fl.ops import OPS
from sglang_fl.sglang_adapter.layers import ADAPTERS
from sglang_fl.sglang_adapter.layers.adapter import covering

Kernels = dict[str, Callable]

REFERENCES: Kernels = {name: op.reference for name, op in OPS.items()}
EMPTY: Kernels = {
    "silu_and_mul": lambda x: x,
    "gelu_and_mul": lambda x, approximate="tanh": x,
    "new_gelu": lambda x: x,
    "rms_norm": lambda x, weight, eps, residual=None: x,
    "gemma_rms_norm": lambda x, weight, eps, residual=None: x,
    "layer_norm": lambda x, weight, bias, eps: x,
    "rotary_embedding": lambda positions, query, key, *rest: (query, key),
    "mrope": lambda positions, query, key, *rest: (query, key),
}


KINDS = {"reference": REFERENCES, "empty": EMPTY}


def plain_forwards(kernels: Kernels) -> dict[type, Callable]:
    """Forwards as SGLang writes them: they read their layer at each call."""

    def silu_and_mul(self, x):
        return kernels["silu_and_mul"](x)

    def gelu_and_mul(self, x):
        return kernels["gelu_and_mul"](x, self.approximate)

    def new_gelu(self, x):
        return kernels["new_gelu"](x)

    def rms_norm(self, x, residual=None, post_residual_addition=None, quant_linear=None):
        return kernels["rms_norm"](x, self.weight, self.variance_epsilon, residual)

    def gemma_rms_norm(self, x, residual=None, post_residual_addition=None):
        return kernels["gemma_rms_norm"](x, self.weight, self.variance_epsilon, residual)

    def gemma3_rms_norm(self, x, residual=None):
        return kernels["gemma_rms_norm"](x, self.weight, self.eps, residual)

    def layer_norm(self, x):
        weight = self.weight if self.elementwise_affine else None
        bias = self.bias if self.use_bias else None
        return kernels["layer_norm"](x, weight, bias, self.variance_epsilon)

    def rotary_embedding(self, positions, query, key, offsets=None, fused_set_kv_buffer_arg=None):
        style = (self.head_size, self.is_neox_style)
        return kernels["rotary_embedding"](positions, query, key, self.cos_sin_cache, *style, offsets)

    def mrope(self, positions, query, key, fused_set_kv_buffer_arg=None):
        style = (self.head_size, self.is_neox_style, self.mrope_section, self.mrope_interleaved)
        return kernels["mrope"](positions, query, key, self.cos_sin_cache, *style)

    return {
        SiluAndMul: silu_and_mul,
        GeluAndMul: gelu_and_mul,
        NewGELU: new_gelu,
        RMSNorm: rms_norm,
        GemmaRMSNorm: gemma_rms_norm,
        Gemma3RMSNorm: gemma3_rms_norm,
        LayerNorm: layer_norm,
        RotaryEmbedding: rotary_embedding,
        MRotaryEmbedding: mrope,
    }


def workloads() -> dict[str, tuple[Callable, tuple]]:
    x, residual = torch.randn(1, 128), torch.randn(1, 128)
    query, key = torch.randn(1, 128), torch.randn(1, 64)
    rope = (64, 64, 128, 10000, True, torch.float32)
    return {
        "SiluAndMul": (SiluAndMul, (x,)),
        "GeluAndMul": (GeluAndMul, (x,)),
        "NewGELU": (NewGELU, (x,)),
        "RMSNorm": (lambda: RMSNorm(128), (x,)),
        "RMSNorm with residual": (lambda: RMSNorm(128), (x, residual)),
        "GemmaRMSNorm": (lambda: GemmaRMSNorm(128), (x,)),
        "GemmaRMSNorm, residual": (lambda: GemmaRMSNorm(128), (x, residual)),
        "Gemma3RMSNorm": (lambda: Gemma3RMSNorm(128), (x,)),
        "LayerNorm": (lambda: LayerNorm(128), (x,)),
        "RotaryEmbedding": (lambda: RotaryEmbedding(*rope), (torch.arange(1), query, key)),
        "MRotaryEmbedding": (
            lambda: MRotaryEmbedding(*rope, mrope_section=[8, 12, 12]),
            (torch.arange(1).expand(3, 1), query, key),
        ),
    }


def without_plugin(kernels: Kernels) -> dict[str, Callable]:
    """Layers that SGLang has resolved by itself, to these kernels."""
    for layer_class, forward in plain_forwards(kernels).items():
        BaseFusedOp.register_oot_forward(layer_class, forward, "native")
    layers = called_once()
    BaseFusedOp._oot_forward_registry.clear()
    return layers


def with_plugin(kernels: Kernels) -> dict[str, Callable]:
    """Layers that our hook has resolved; other kernels than the references are bound by the adapter."""
    load_plugins()
    layers = called_once()
    for layer in layers.values() if kernels is not REFERENCES else ():
        (adapter,) = covering(type(layer), ADAPTERS)
        own = SimpleNamespace(path=OwnPath.NATIVE, method="forward_native")
        layer._forward_method = MethodType(adapter.bind(layer, kernels[adapter.op.name], own), layer)
    return layers


def called_once() -> dict[str, Any]:
    layers = {name: make() for name, (make, _) in workloads().items()}
    for name, (_, arguments) in workloads().items():
        layers[name](*arguments)
    return layers


def microseconds(call: Callable, arguments: tuple, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        call(*arguments)
    return (time.perf_counter() - start) / calls * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=300, help="rounds; both sides run in each")
    parser.add_argument("--calls", type=int, default=60, help="calls of each side in a round")
    parser.add_argument("--csv", type=Path, help="write the table there too")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with torch.no_grad():
        plain = {kind: without_plugin(kernels) for kind, kernels in KINDS.items()}
        ours = {kind: with_plugin(kernels) for kind, kernels in KINDS.items()}
        rows = [
            [name, kind, *measure(name, plain[kind][name], ours[kind][name], options)]
            for kind in KINDS
            for name in workloads()
        ]
    report(rows, options.csv)


def measure(name: str, plain: Callable, ours: Callable, options: argparse.Namespace) -> list[str]:
    _, arguments = workloads()[name]
    pairs = []
    for round_ in range(options.rounds):
        # In turn first and second, so that a drift of the machine meets both alike.
        sides = [(plain, 0), (ours, 1)] if round_ % 2 else [(ours, 1), (plain, 0)]
        times = {index: microseconds(side, arguments, options.calls) for side, index in sides}
        pairs.append((times[0], times[1]))
    ratios = sorted(after / before for before, after in pairs)
    quarter = len(ratios) // 4
    return [
        f"{min(before for before, _ in pairs):.2f}",
        f"{min(after for _, after in pairs):.2f}",
        f"{statistics.median(ratios):.3f}",
        f"{ratios[quarter]:.3f}",
        f"{ratios[-quarter - 1]:.3f}",
    ]


def report(rows: list[list[str]], path: Path | None) -> None:
    head = ["layer", "kernel", "without, min (µs)", "with, min (µs)", "ratio", "quartile 1", "quartile 3"]
    print(about())
    for row in [head, *rows]:
        print(f"{row[0]:24}{row[1]:12}" + "".join(f"{cell:>19}" for cell in row[2:]))
    if path:
        write_table(path, about(), head, rows)


if __name__ == "__main__":
    main()
