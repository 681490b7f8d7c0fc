"""A layer of linear attention (the gated delta rule and its convolution): inputs, and SGLang's own calls."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from benchmarks.cell import Cell, kernel
from benchmarks.workloads import PROMPTS, REQUESTS, LinearAttention
from sglang_fl.ops import Kernel

__all__ = [
    "Layer",
    "causal_conv1d_fn",
    "causal_conv1d_update",
    "chunk_gated_delta_rule",
    "fused_recurrent_gated_delta_rule_packed_decode",
    "fused_sigmoid_gating_delta_rule_update",
]

DTYPE = torch.bfloat16
#: Slots of the pools: a graph's calls find states in other slots, so not in the L2 cache.
SLOTS = 640


@dataclass(frozen=True)
class Layer:
    """The parameters of a layer, and the pools that SGLang keeps its states in.

    Parameters
    ----------
    shape : of the layer
    rates, biases : (value heads,), float32
    weight : of the convolution, (channels, taps)
    states : (slots, value heads, values, keys), float32
    windows : the last inputs of the convolution, (slots, channels, taps - 1)
    """

    shape: LinearAttention
    rates: torch.Tensor
    biases: torch.Tensor
    weight: torch.Tensor
    states: torch.Tensor
    windows: torch.Tensor

    @classmethod
    def of(cls, shape: LinearAttention, device: str = "cuda", slots: int = SLOTS) -> "Layer":
        """Make parameters and pools with random numbers in them."""

        def normal(*sizes: int) -> torch.Tensor:
            return torch.randn(*sizes, device=device)

        heads, channels = shape.value_heads, shape.channels
        return cls(
            shape,
            normal(heads),
            normal(heads),
            normal(channels, shape.taps).to(DTYPE),
            0.1 * normal(slots, heads, shape.values, shape.keys),
            normal(slots, channels, shape.taps - 1).to(DTYPE),
        )

    @property
    def name(self) -> str:
        """Checkpoint and heads, for a table."""
        shape = self.shape
        return f"{shape.name} {shape.heads}+{shape.value_heads}x{shape.keys}x{shape.values}"

    def slots(self, requests: int) -> torch.Tensor:
        """Return the slots of so many requests, no slot twice."""
        return torch.randperm(len(self.states), device=self.states.device)[:requests].int()

    def packed(self, requests: int) -> torch.Tensor:
        """Return queries, keys and values of so many tokens, as the projection and the convolution do."""
        return torch.randn(requests, self.shape.channels, device=self.states.device, dtype=DTYPE)

    def step_inputs(self, requests: int) -> tuple[torch.Tensor, ...]:
        """Return the arguments of a decode step: packed projection, both gates, slots."""
        a, b = torch.randn(
            2, requests, self.shape.value_heads, device=self.states.device, dtype=DTYPE
        ).unbind()
        return self.packed(requests), a, b, self.slots(requests)

    def step_moved(self, requests: int) -> int:
        """Return the bytes that a step must read and write: the states, the projection and the result."""
        shape = self.shape
        state = shape.value_heads * shape.values * shape.keys * 4
        return requests * (2 * state + 2 * (shape.channels + shape.value_heads * (shape.values + 2)))

    def step(self, kernel: Kernel) -> Callable:
        """Return a decode step by a kernel of ``fused_recurrent_gated_delta_rule_packed_decode``."""
        rest, scale = (self.rates, self.biases, self.states), self.shape.keys**-0.5
        return lambda mixed, a, b, slots: kernel(mixed, a, b, *rest, slots, scale)

    def runs(self, kernel: Kernel) -> Callable:
        """Return a decode step by a kernel of ``fused_sigmoid_gating_delta_rule_update``."""
        scale = self.shape.keys**-0.5

        def run(
            mixed: torch.Tensor, a: torch.Tensor, b: torch.Tensor, slots: torch.Tensor, bounds: torch.Tensor
        ):
            q, k, v = self._parts(mixed)
            return kernel(self.rates, a, self.biases, q, k, v, b, self.states, slots, bounds, scale)

        return run

    def run_inputs(self, requests: int) -> tuple[torch.Tensor, ...]:
        """Return the arguments of a step of runs of one token: those of a step, and where each run begins."""
        bounds = torch.arange(requests + 1, device=self.states.device, dtype=torch.int32)
        return *self.step_inputs(requests), bounds

    def _parts(self, mixed: torch.Tensor) -> tuple[torch.Tensor, ...]:
        shape, tokens = self.shape, len(mixed)
        width = shape.heads * shape.keys
        q, k, v = mixed.split([width, width, shape.value_heads * shape.values], dim=-1)
        q, k = (x.view(1, tokens, shape.heads, shape.keys) for x in (q, k))
        return q, k, v.view(1, tokens, shape.value_heads, shape.values)

    def sglang_step(self) -> Callable:
        """Return SGLang's own decode step."""
        from sglang.srt.layers.attention.linear.kernels.gdn_triton import TritonGDNKernel

        shape, own = self.shape, TritonGDNKernel()
        facts = {"num_v_heads": shape.value_heads, "head_v_dim": shape.values, "scale": shape.keys**-0.5}
        facts |= {"A_log": self.rates, "dt_bias": self.biases, "ssm_states": self.states}
        return lambda mixed, a, b, slots: own.packed_decode(mixed, a, b, cache_indices=slots, **facts)

    def sglang_runs(self) -> Callable:
        """Return SGLang's own decode step by runs of tokens."""
        from sglang.srt.layers.attention.linear.kernels.gdn_triton import TritonGDNKernel

        own = TritonGDNKernel()
        facts = {"A_log": self.rates, "dt_bias": self.biases, "ssm_states": self.states}

        def run(
            mixed: torch.Tensor, a: torch.Tensor, b: torch.Tensor, slots: torch.Tensor, bounds: torch.Tensor
        ):
            places = {"cache_indices": slots, "query_start_loc": bounds}
            return own.decode(*self._parts(mixed), a, b, **facts, **places)

        return run

    def convolution(self, kernel: Kernel) -> Callable:
        """Return one token of the convolution by a kernel of ``causal_conv1d_update``."""
        return lambda x, slots: kernel(x, self.windows, self.weight, None, "silu", slots)

    def sglang_convolution(self) -> Callable:
        """Return SGLang's own convolution of one token."""
        from sglang.kernels.ops.mamba.causal_conv1d_triton import causal_conv1d_update as own

        rest = (self.windows, self.weight, None, "silu")
        return lambda x, slots: own(x, *rest, conv_state_indices=slots)

    def convolution_inputs(self, requests: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the arguments of one token of the convolution."""
        return self.packed(requests), self.slots(requests)

    def convolution_moved(self, requests: int) -> int:
        """Return the bytes that one token must read and write: inputs, results, the last inputs; weights."""
        shape = self.shape
        return 2 * shape.channels * (requests * (2 + 2 * (shape.taps - 1)) + shape.taps)

    def prompts(self, kernel: Kernel) -> Callable:
        """Return the convolution of whole prompts by a kernel of ``causal_conv1d_fn``."""
        return lambda x, bounds, slots, has, lengths: kernel(
            x.t(), self.weight, None, self.windows, bounds, slots, has, "silu"
        )

    def sglang_prompts(self) -> Callable:
        """Return SGLang's own convolution of whole prompts, which lie as SGLang lays them."""
        from sglang.srt.layers.attention.mamba.causal_conv1d import causal_conv1d_fn as own

        return lambda x, bounds, slots, has, lengths: own(
            x.t(),
            self.weight,
            None,
            conv_states=self.windows,
            query_start_loc=bounds,
            cache_indices=slots,
            has_initial_state=has,
            seq_lens_cpu=lengths,
            activation="silu",
        )

    def prompt_inputs(self, prompts: int, length: int) -> tuple:
        """Return the arguments of the convolution of so many new prompts."""
        device = self.states.device
        bounds = length * torch.arange(prompts + 1, device=device, dtype=torch.int32)
        has = torch.zeros(prompts, device=device, dtype=torch.bool)
        return self.packed(prompts * length), bounds, self.slots(prompts), has, [length] * prompts

    def chunks(self, kernel: Kernel) -> Callable:
        """Return whole prompts by a kernel of ``chunk_gated_delta_rule``."""
        scale = self.shape.keys**-0.5

        def run(mixed: torch.Tensor, g: torch.Tensor, beta: torch.Tensor, slots: torch.Tensor, bounds):
            return kernel(*self._parts(mixed), g, beta, self.states, slots, bounds, scale)

        return run

    def sglang_chunks(self) -> Callable:
        """Return SGLang's own whole prompts."""
        from sglang.srt.layers.attention.linear.kernels.gdn_triton import TritonGDNKernel

        own = TritonGDNKernel()

        def run(mixed: torch.Tensor, g: torch.Tensor, beta: torch.Tensor, slots: torch.Tensor, bounds):
            places = {"ssm_states": self.states, "cache_indices": slots, "query_start_loc": bounds}
            return own.extend(*self._parts(mixed), g, beta, **places)

        return run

    def chunk_inputs(self, bounds: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the arguments of prompts that end at these bounds: projection, decay, rate, slots."""
        tokens, requests = int(bounds[-1]), len(bounds) - 1
        gates = torch.randn(2, 1, tokens, self.shape.value_heads, device=self.states.device)
        g, beta = torch.nn.functional.logsigmoid(3 + gates[0]), gates[1].sigmoid()
        return self.packed(tokens), g, beta, self.slots(requests), bounds


def fused_recurrent_gated_delta_rule_packed_decode(shape: LinearAttention) -> Iterator[Cell]:
    op, layer = "fused_recurrent_gated_delta_rule_packed_decode", Layer.of(shape)
    sides = {"flagos": layer.step(kernel(op)), "sglang": layer.sglang_step()}
    for requests in REQUESTS:
        inputs = lambda requests=requests: layer.step_inputs(requests)  # noqa: E731
        yield Cell(op, layer.name, requests, layer.step_moved(requests), inputs, sides)


def fused_sigmoid_gating_delta_rule_update(shape: LinearAttention) -> Iterator[Cell]:
    op, layer = "fused_sigmoid_gating_delta_rule_update", Layer.of(shape)
    sides = {"flagos": layer.runs(kernel(op)), "sglang": layer.sglang_runs()}
    for requests in REQUESTS:
        inputs = lambda requests=requests: layer.run_inputs(requests)  # noqa: E731
        yield Cell(op, layer.name, requests, layer.step_moved(requests), inputs, sides)


def causal_conv1d_update(shape: LinearAttention) -> Iterator[Cell]:
    op, layer = "causal_conv1d_update", Layer.of(shape)
    sides = {"flagos": layer.convolution(kernel(op)), "sglang": layer.sglang_convolution()}
    for requests in REQUESTS:
        inputs = lambda requests=requests: layer.convolution_inputs(requests)  # noqa: E731
        yield Cell(op, layer.name, requests, layer.convolution_moved(requests), inputs, sides)


def causal_conv1d_fn(shape: LinearAttention) -> Iterator[Cell]:
    op, layer = "causal_conv1d_fn", Layer.of(shape)
    sides = {"flagos": layer.prompts(kernel(op)), "sglang": layer.sglang_prompts()}
    for prompts, length in PROMPTS:
        inputs = lambda prompts=prompts, length=length: layer.prompt_inputs(prompts, length)  # noqa: E731
        name, tokens = f"{layer.name}, {prompts} x {length}", prompts * length
        yield Cell(op, name, tokens, 4 * shape.channels * tokens, inputs, sides)


def chunk_gated_delta_rule(shape: LinearAttention) -> Iterator[Cell]:
    op, layer = "chunk_gated_delta_rule", Layer.of(shape)
    sides = {"flagos": layer.chunks(kernel(op)), "sglang": layer.sglang_chunks()}
    for prompts, length in PROMPTS:
        # One tensor for all calls: SGLang counts its chunks on the host, once for each tensor, which no graph
        # captures.
        bounds = length * torch.arange(prompts + 1, device=layer.states.device, dtype=torch.int32)
        inputs = lambda bounds=bounds: layer.chunk_inputs(bounds)  # noqa: E731
        name, tokens = f"{layer.name}, {prompts} x {length}", prompts * length
        state = shape.value_heads * shape.values * shape.keys
        moved = 2 * tokens * (shape.channels + shape.value_heads * shape.values)
        yield Cell(op, name, tokens, moved + 2 * state * (4 * prompts + tokens // 64), inputs, sides)
