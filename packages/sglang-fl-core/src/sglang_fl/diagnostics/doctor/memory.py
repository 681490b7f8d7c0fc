"""Out of memory at start: free memory against the weights and ``--mem-fraction-static``, with a value to try.

SGLang measures the free memory before it loads a model, keeps the share ``1 - mem_fraction_static`` of it for
activations and graphs, and what the weights leave of the rest becomes the KV cache.
"""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from sglang_fl.diagnostics.doctor.configured import configured
from sglang_fl.diagnostics.doctor.devices import count
from sglang_fl.diagnostics.doctor.finding import Finding, ok, problem, unknown
from sglang_fl.diagnostics.doctor.launch import Launch
from sglang_fl.diagnostics.doctor.model import Model, read_model
from sglang_fl.errors import SettingsError
from sglang_fl.registry.cpu import MEM_FRACTION_STATIC

__all__ = ["memory"]

GIB = 1 << 30
#: About what SGLang takes by itself on an accelerator; its own formula depends on a dozen arguments.
ACCELERATOR_FRACTION = 0.85
#: Activations of a small batch, and graphs: with less than this left, starts fail.
LEAST_REST = GIB
#: A server that cannot hold so many tokens is of no use.
USEFUL_TOKENS = 4096
#: More than this share is never available: allocators and libraries take the rest.
MOST = 0.95


@dataclass(frozen=True)
class _Budget:
    """One rank's memory, in bytes.

    Parameters
    ----------
    free : what SGLang will find free, on the device that has least
    own : what of that this rank can have: the ranks of a CPU share the host's memory
    weights : its share of the weights
    kv : keys and values of as many tokens as make a useful server
    fraction : the share for weights and KV cache
    """

    free: int
    own: int
    weights: int
    kv: int
    fraction: float

    @property
    def least(self) -> float:
        """The smallest share with a useful server, in hundredths."""
        return math.ceil(100 * (self.weights + self.kv) / self.free) / 100 if self.free else math.inf

    @property
    def most(self) -> float:
        """The largest share that leaves room for activations, in hundredths."""
        usable = max(0, min(MOST * self.own, self.own - LEAST_REST))
        return math.floor(100 * usable / max(self.free, 1)) / 100

    @property
    def to_try(self) -> float:
        """A share between the two, nearer to the least: what works is more than what is large."""
        return math.floor(100 * min(self.most, self.least + (self.most - self.least) / 2)) / 100


def memory(launch: Launch) -> Iterator[Finding]:
    """Do weights and a useful KV cache fit into the free memory, with the share that was given?"""
    configuration = configured()
    if launch.model is None or configuration is None:
        return
    device_type = configuration.registry.vendor.device_type
    try:
        model = read_model(launch.model)
        weights = model.weight_bytes(launch.dtype)
        free = _free(device_type, launch.local_ranks)
    except SettingsError as error:
        yield unknown("memory", str(error))
        return
    if not weights:
        yield unknown("memory", f"no weights (*.safetensors, *.bin, *.pt) lie in {launch.model}")
    elif free is None:
        yield unknown("memory", f"the free memory of {device_type} devices cannot be asked for")
    else:
        yield _judged(_budget(model, weights, free, launch, device_type), weights, launch)


def _budget(model: Model, weights: int, free: tuple[int, int], launch: Launch, device_type: str) -> _Budget:
    per_token = model.kv_bytes_per_token(launch.dtype, launch.tp) or 0
    default = MEM_FRACTION_STATIC if device_type == "cpu" else ACCELERATOR_FRACTION
    given = launch.mem_fraction_static
    tokens = min(USEFUL_TOKENS, model.context)
    return _Budget(*free, weights // launch.tp, per_token * tokens, default if given is None else given)


def _judged(budget: _Budget, weights: int, launch: Launch) -> Finding:
    text = (
        f"weights {_size(weights)}, {_size(budget.weights)} on each of {launch.tp} ranks; free for a rank "
        f"{_size(budget.own)}; --mem-fraction-static {_fraction(launch, budget)}"
    )
    if budget.least > budget.most:
        return problem("memory", f"{text}: too little memory", _remedy_of_size(weights, budget.own))
    value = f"--mem-fraction-static {budget.to_try:.2f}"
    if budget.fraction * budget.free < budget.weights + budget.kv:
        return problem("memory", f"{text}: leaves too little for the KV cache", f"try {value}")
    if budget.fraction > budget.most:
        rest = _size(max(0, int(budget.own - budget.fraction * budget.free)))
        return problem("memory", f"{text}: leaves {rest} for activations and graphs", f"try {value}")
    return ok("memory", text, f"should a start still run out of memory, try {value}")


def _fraction(launch: Launch, budget: _Budget) -> str:
    return f"{budget.fraction:g}{' by default' if launch.mem_fraction_static is None else ''}"


def _remedy_of_size(weights: int, own: int) -> str:
    tp = 1
    while tp < 1024 and weights / tp > MOST * own - LEAST_REST:
        tp *= 2
    spread = f"spread it over more devices (--tp {tp}), " if tp < 1024 else ""
    return f"{spread}end what else uses the memory, or take a quantized model"


def _size(number: int) -> str:
    return f"{number / GIB:.2f} GiB" if number >= GIB else f"{number / 2**20:.0f} MiB"


def _free(device_type: str, ranks: int) -> tuple[int, int] | None:
    """Return the bytes that SGLang finds free and those that one rank can have; None if they are not told."""
    if device_type == "cpu":
        return int(psutil.virtual_memory().available), _free_of_host() // ranks
    module = getattr(torch, device_type, None)
    if module is None or not hasattr(module, "mem_get_info") or not count(device_type):
        return None
    free = min(int(module.mem_get_info(device)[0]) for device in range(min(ranks, count(device_type))))
    return free, free


def _free_of_host() -> int:
    """Return what this process may still have: of a container, what its limit leaves."""
    free = int(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        free = min(free, max(0, limit - used))
    return free
