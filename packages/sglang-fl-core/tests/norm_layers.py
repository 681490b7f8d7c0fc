"""A layer with kernels of ``rms_norm`` that work, fail or refuse, for tests of a layer's life."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sglang_fl.dispatch.life import LayerLife
from sglang_fl.dispatch.plan import Bind, Forward, LayerPlan
from sglang_fl.dispatch.resolution import Resolution
from sglang_fl.errors import REFUSALS
from sglang_fl.logs.dispatch_log import DispatchLog
from sglang_fl.ops import OPS
from sglang_fl.sglang_adapter.layers.adapter import Adapter
from sglang_fl.vendor import BackendKind, OpImpl

RMS_NORM = """
    from sglang_fl.ops import OPS

    calls = []

    def working(x, weight, eps, residual=None):
        calls.append("working")
        return OPS["rms_norm"].reference(x, weight, eps, residual)

    def half_done(x, weight, eps, residual=None):
        calls.append("half_done")
        x[: len(x) // 2] = 7
        residual[: len(residual) // 2] = -7
        raise RuntimeError("launch failed: invalid configuration")

    def refusing(x, weight, eps, residual=None):
        from sglang_fl.errors import UnsupportedError
        raise UnsupportedError("rows of 48 are not supported")

    def half_done_later(x, weight, eps, residual=None):
        if calls:
            raise RuntimeError("out of memory")
        return working(x, weight, eps, residual)

    def in_place(x, weight, eps, residual=None):
        normed, total = working(x, weight, eps, residual)
        return x.copy_(normed), residual.copy_(total)

    def other_signature(out, x, weight, eps):
        calls.append("other_signature")
        return out
"""


class Norm:
    """Stands for a layer of SGLang, which keeps its forward as SGLang does."""

    def __init__(self) -> None:
        self._forward_method: Any = None

    def forward_native(self, *args: Any, **kwargs: Any) -> Any:
        """Stand for SGLang's own forward."""
        return "SGLang's own"

    def forward_cuda(self, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("SGLang's own path failed")


def direct(layer: Any, kernel: Callable[..., Any], own: Any) -> Forward:
    """Bind as an adapter whose arguments are the contract's."""

    def forward(layer: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return kernel(*args, **kwargs)
        except REFUSALS as refusal:
            own.because(refusal)
        return own(layer, *args, **kwargs)

    return forward


class Layer:
    """A layer, its life, and what came of it."""

    def __init__(self, plan: LayerPlan, name: str, path: Path, own: str = "forward_native") -> None:
        self.path = path
        self.commits: list[tuple[Forward, Forward]] = []
        self.layer = Norm()
        arguments = (self.layer, name, getattr(self.layer, own), self._commit, DispatchLog(path))
        self.forward = self.layer._forward_method = LayerLife(lambda layer, own: plan, *arguments)

    def _commit(self, layer: Any, life: Forward, forward: Forward) -> None:
        self.commits.append((life, forward))
        layer._forward_method = forward

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call it as SGLang does: whatever the layer holds now."""
        return self.layer._forward_method(*args, **kwargs)

    @property
    def log(self) -> list[str]:
        return [line.partition(" → ")[2] for line in self.path.read_text("utf-8").splitlines()]


@pytest.fixture
def module(write_module: Callable[[str], str]) -> str:
    """A module with kernels of ``rms_norm``."""
    return write_module(RMS_NORM)


@pytest.fixture
def layer(module: str, tmp_path: Path, request: pytest.FixtureRequest) -> Callable[..., Layer]:
    """``layer("half_done", "reference")`` makes a layer whose op has these candidates."""

    def make(
        *names: str,
        strict: bool = False,
        bind: Bind = direct,
        own: str = "forward_native",
        or_own: bool = False,
    ) -> Layer:
        op = OPS["rms_norm"]
        candidates = tuple(
            OpImpl(op.name, BackendKind.REFERENCE, "reference", op.target)
            if name == "reference"
            else OpImpl(
                op.name, BackendKind.FLAGOS, f"flagos.{name}", name if ":" in name else f"{module}:{name}"
            )
            for name in names
        )
        # Failures are reported once in a process for each layer class, so each test has its own.
        name = f"RMSNorm-{request.node.name}"
        resolution = Resolution(op, candidates, strict=strict)
        plan = LayerPlan(own, adapter=Adapter("a:RMSNorm", op, bind), resolution=resolution, or_own=or_own)
        return Layer(plan, name, tmp_path / "dispatch.log", own)

    return make


def arguments(residual: bool = True) -> dict[str, Any]:
    """Make arguments of ``rms_norm``; x and residual are rows of a wider tensor."""
    random = torch.Generator().manual_seed(0)
    made: dict[str, Any] = {
        "x": torch.randn(6, 64, generator=random)[:, :48],
        "weight": torch.randn(48, generator=random),
        "eps": 1e-6,
    }
    return made | ({"residual": torch.randn(6, 64, generator=random)[:, :48]} if residual else {})


def assert_untouched(given: dict[str, Any]) -> None:
    for name, value in arguments("residual" in given).items():
        if isinstance(value, Tensor):
            assert torch.equal(given[name], value), f"{name} was written"


def assert_right(outputs: Any) -> None:
    expected = OPS["rms_norm"].reference(**arguments())
    assert torch.equal(outputs[0], expected[0])
    assert torch.equal(outputs[1], expected[1])


EXCLUDED = {"residual": torch.zeros(6, 48, dtype=torch.float64)}


def excluded() -> dict[str, Any]:
    """Make a call that the contract excludes: the residual has another dtype than x."""
    return arguments() | EXCLUDED
