"""The life of a layer: calls and layers that are left to SGLang, at any time."""

import logging
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import norm_layers
from norm_layers import Layer, arguments, assert_right, assert_untouched, direct, excluded
from sglang_fl.dispatch.life import MOST_EXCLUDED
from sglang_fl.dispatch.plan import Bind, Forward, LayerPlan

#: Fixtures.
layer, module = norm_layers.layer, norm_layers.module


def leaving_if(is_meant: Callable[[dict[str, Any]], bool]) -> Bind:
    """Make a bind that leaves some calls to SGLang's own path."""

    def bind(layer: Any, kernel: Callable[..., Any], own: Any) -> Forward:
        ours = direct(layer, kernel, own)

        def forward(layer: Any, **kwargs: Any) -> Any:
            return own(layer, **kwargs) if is_meant(kwargs) else ours(layer, **kwargs)

        return forward

    return bind


def without_residual(given: dict[str, Any]) -> bool:
    return "residual" not in given


def test_call_that_fell_through_decides_nothing_and_is_logged_as_sglangs(
    layer: Callable[..., Layer], module: str
):
    rms = layer("working", "reference", bind=leaving_if(without_residual))
    for _ in range(2):
        assert rms.forward(**arguments(residual=False)) == "SGLang's own"
    assert (rms.log, rms.commits, import_module(module).calls) == (["sglang(native)"], [], [])
    assert_right(rms.forward(**arguments()))
    assert rms.log == ["sglang(native)", "flagos(flagos.working)"]
    assert len(rms.commits) == 1


@pytest.mark.parametrize("strict", [False, True])
def test_failure_of_sglangs_own_path_is_not_blamed_on_the_kernel(
    layer: Callable[..., Layer], caplog: pytest.LogCaptureFixture, strict: bool
):
    bind = leaving_if(without_residual)
    rms = layer("working", "reference", strict=strict, bind=bind, own="forward_cuda")
    with pytest.raises(RuntimeError, match="SGLang's own path failed"):
        rms.forward(**arguments(residual=False))
    assert (rms.log, rms.commits, caplog.records) == ([], [], [])
    rms.forward(**arguments())
    assert rms.log == ["flagos(flagos.working)"]


def test_layer_that_no_adapter_translates_is_sglangs_for_good(tmp_path: Path):
    rms = Layer(LayerPlan("forward_native", "no reason"), "RMSNorm", tmp_path / "dispatch.log")
    assert rms.log == []
    assert rms.forward(**arguments()) == "SGLang's own"
    assert rms.forward.__name__ == "forward_native"
    assert [forward for _, forward in rms.commits] == [rms.layer.forward_native]
    assert rms.log == ["sglang(native)"]


def test_layer_is_sglangs_where_no_kernel_can_run_it_and_sglang_is_the_last_resort(
    layer: Callable[..., Layer],
):
    rms, given = layer("half_done", "missing", or_own=True), arguments()
    assert rms.forward(**given) == "SGLang's own"
    assert_untouched(given)
    assert [forward for _, forward in rms.commits] == [rms.layer.forward_native]
    assert rms.log == ["sglang(native)"]


def test_layer_without_any_kernel_is_sglangs_where_sglang_is_the_last_resort(layer: Callable[..., Layer]):
    rms = layer(or_own=True)
    assert rms.forward(**arguments()) == "SGLang's own"
    assert rms.log == ["sglang(native)"]


def test_call_that_the_contract_excludes_is_left_to_sglang(layer: Callable[..., Layer]):
    rms = layer("reference")
    excluded = arguments() | {"residual": torch.zeros(6, 48, dtype=torch.float64)}
    assert rms.forward(**excluded) == "SGLang's own"
    assert (rms.commits, rms.log) == ([], ["sglang(native)"])
    assert_right(rms.forward(**arguments()))
    assert rms.log == ["sglang(native)", "reference(reference)"]


def test_failure_of_sglangs_own_path_after_an_excluded_call_is_not_blamed_on_the_kernel(
    layer: Callable[..., Layer], caplog: pytest.LogCaptureFixture
):
    rms = layer("reference", own="forward_cuda", bind=leaving_if(without_residual))
    excluded = arguments() | {"residual": torch.zeros(6, 48, dtype=torch.float64)}
    for given in (excluded, arguments(residual=False)):
        with pytest.raises(RuntimeError, match="SGLang's own path failed"):
            rms.forward(**given)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert_right(rms.forward(**arguments()))


def test_excluded_call_is_sglangs_in_every_state_with_one_line_for_each_reason(
    layer: Callable[..., Layer], caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, "sglang_fl")
    rms = layer("reference")
    assert rms(**excluded()) == "SGLang's own"
    assert_right(rms(**arguments()))
    for _ in range(1000):
        assert rms(**excluded()) == "SGLang's own"
    assert_right(rms(**arguments()))
    assert rms.log == ["sglang(native)", "reference(reference)"]
    (line,) = [record.getMessage() for record in caplog.records]
    assert "a call is left to SGLang: rms_norm: residual (6, 48) torch.float64 is not like" in line
    other = arguments() | {"weight": torch.ones(47)}
    assert rms(**other) == "SGLang's own"
    assert rms(**other) == "SGLang's own"
    assert len(caplog.records) == 2


def test_later_call_that_a_kernel_refuses_is_sglangs(layer: Callable[..., Layer], write_module):
    module = write_module(
        """
        from sglang_fl.errors import UnsupportedError
        from sglang_fl.ops import OPS

        def rms_norm(x, weight, eps, residual=None):
            if x.dtype.itemsize == 2:
                raise UnsupportedError("16 bits are too few")
            return OPS["rms_norm"].reference(x, weight, eps, residual)
        """
    )
    rms = layer(f"{module}:rms_norm", "reference")
    rms(**arguments())
    halves = {k: v.half() if isinstance(v, Tensor) else v for k, v in arguments().items()}
    assert rms(**halves) == "SGLang's own"
    assert_right(rms(**arguments()))


def test_layer_whose_calls_are_all_excluded_is_given_back_and_copies_nothing(
    layer: Callable[..., Layer], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, "sglang_fl")
    copies: list[Tensor] = []
    monkeypatch.setattr(Tensor, "clone", lambda self: copies.append(self))
    rms = layer("working", "reference")
    for _ in range(MOST_EXCLUDED):
        assert rms.commits == []
        assert rms(**excluded()) == "SGLang's own"
    assert [forward for _, forward in rms.commits] == [rms.layer.forward_native]
    assert rms(**excluded()) == "SGLang's own"
    assert copies == []
    assert sum("all of the first 8 calls were SGLang's" in r.getMessage() for r in caplog.records) == 1


def test_layer_that_its_adapter_always_leaves_to_sglang_is_given_back(layer: Callable[..., Layer]):
    rms = layer("working", bind=leaving_if(without_residual))
    for _ in range(MOST_EXCLUDED):
        rms(**arguments(residual=False))
    assert [forward for _, forward in rms.commits] == [rms.layer.forward_native]


def test_one_call_of_ours_among_excluded_ones_decides(layer: Callable[..., Layer]):
    rms = layer("working")
    for _ in range(MOST_EXCLUDED - 1):
        rms(**excluded())
    assert_right(rms(**arguments()))
    assert rms(**excluded()) == "SGLang's own"
    assert_right(rms(**arguments()))


def test_an_adapter_that_raises_leaves_the_layer_to_sglang_with_one_warning(
    layer: Callable[..., Layer], caplog: pytest.LogCaptureFixture
):
    def bind(layer: Any, kernel: Callable[..., Any], own: Any) -> Forward:
        raise AttributeError("'Foreign' object has no attribute 'variance_epsilon'")

    def late(layer: Any, kernel: Callable[..., Any], own: Any) -> Forward:
        return lambda layer, **given: kernel(layer.weight, **given)

    for broken in (bind, bind, late):
        rms = layer("reference", bind=broken)
        assert rms(**arguments()) == "SGLang's own"
        assert [forward for _, forward in rms.commits] == [rms.layer.forward_native]
    messages = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(messages) == 2
    assert all("left to SGLang: its adapter raised AttributeError" in message for message in messages)
    for broken in (bind, late):
        with pytest.raises(AttributeError, match="no attribute"):
            layer("reference", bind=broken, strict=True)(**arguments())


def test_every_candidate_may_refuse_a_call_which_then_is_sglangs(layer: Callable[..., Layer]):
    rms = layer("refusing")
    for _ in range(MOST_EXCLUDED):
        assert rms(**arguments()) == "SGLang's own"
    assert [forward for _, forward in rms.commits] == [rms.layer.forward_native]
