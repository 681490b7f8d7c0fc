"""What is counted for SGLang's ``/metrics``; ``tests/engine/test_http_server.py`` asks a server."""

from typing import Any

import pytest
import torch
from prometheus_client import REGISTRY

from sglang_fl.dispatch.life import LayerLife
from sglang_fl.dispatch.plan import LayerPlan
from sglang_fl.errors import UnsupportedError
from sglang_fl.logs import counters
from sglang_fl.logs.compile_monitor import CompileMonitor
from sglang_fl.logs.dispatch_log import DispatchLog
from sglang_fl.ops import OPS
from sglang_fl.vendor import BackendKind, OpImpl


@pytest.fixture
def counted(monkeypatch) -> Any:
    """Return a function that gives a counter's value; counting ends with the test."""
    monkeypatch.setattr(counters, "_enabled", {})
    counters.enable()
    yield lambda name, **labels: REGISTRY.get_sample_value(f"{name}_total", labels) or 0.0
    for counter in counters._enabled.values():
        REGISTRY.unregister(counter)


def test_nothing_is_counted_where_sglang_does_not_count():
    counters.count(counters.FALLBACKS, op="rms_norm", implementation="vendor.toy")
    assert REGISTRY.get_sample_value("sglang_fl_fallbacks_total") is None


def life(monkeypatch, *kernels: Any) -> LayerLife:
    """Return the life of a layer whose candidates are these kernels."""
    op, layer = OPS["silu_and_mul"], torch.nn.SiLU()
    impls = tuple(
        OpImpl(op.name, BackendKind.VENDOR, f"vendor.toy{i}", f"toy:kernel{i}") for i, _ in enumerate(kernels)
    )
    found = dict(zip(impls, kernels, strict=True))
    monkeypatch.setattr("sglang_fl.dispatch.life.load_kernel", lambda op, impl, strict: found[impl])
    resolution = type("Resolution", (), {"op": op, "candidates": impls, "strict": False})()
    adapter = type("Adapter", (), {"op": op, "bind": staticmethod(bind)})()
    plan = LayerPlan(adapter=adapter, resolution=resolution, method="forward_native", or_own=True)
    return LayerLife(
        lambda *_: plan, layer, "SiluAndMul", lambda x: x[:, 0::2], lambda *_: None, DispatchLog(None)
    )


def bind(layer: Any, kernel: Any, own: Any) -> Any:
    def forward(layer: Any, x: torch.Tensor) -> torch.Tensor:
        try:
            return kernel(x)
        except UnsupportedError as refusal:
            own.because(refusal)
        return own(layer, x)

    return forward


def test_layers_fallbacks_and_calls_left_to_sglang_are_counted(monkeypatch, counted):
    def fails(x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError

    def refuses(x: torch.Tensor) -> torch.Tensor:
        if len(x) > 3:
            raise UnsupportedError(f"{len(x)} rows are too many")
        return OPS["silu_and_mul"].reference(x)

    forwards: list[Any] = []
    alive = life(monkeypatch, fails, refuses)
    alive._commit = lambda layer, life, forward: forwards.append(forward)
    alive(torch.ones(2, 8))
    for rows in (5, 6, 3):
        forwards[0](torch.ones(rows, 8))
    assert counted(counters.FALLBACKS, op="silu_and_mul", implementation="vendor.toy0") == 1
    assert counted(counters.LAYERS, layer_class="SiluAndMul", ran="vendor(vendor.toy1)") == 1
    assert counted(counters.LEFT, layer_class="SiluAndMul", reason="# rows are too many") == 2


def test_kernels_that_are_compiled_late_are_counted(counted):
    monitor = CompileMonitor("cpu")
    monitor._tell("compiled", "early", lambda: "")
    monitor.expect_none()
    monitor._tell("compiled", "late", lambda: "")
    assert counted(counters.COMPILED, kernel="early") == 0
    assert counted(counters.COMPILED, kernel="late") == 1
