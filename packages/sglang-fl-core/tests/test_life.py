"""The life of a layer: candidates in order, nothing harmed, one bound kernel."""

import logging
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor

import norm_layers
from norm_layers import Layer, arguments, assert_right, assert_untouched, direct
from sglang_fl.dispatch.life import is_ours
from sglang_fl.dispatch.plan import Forward, LayerPlan
from sglang_fl.dispatch.resolution import Resolution
from sglang_fl.dispatch.trial import NextCandidateError, Trial
from sglang_fl.errors import NoImplementationError, VendorError
from sglang_fl.ops import OPS, with_options
from sglang_fl.sglang_adapter.layers.adapter import Adapter
from sglang_fl.vendor import BackendKind, OpImpl, load_target

#: Fixtures.
layer, module = norm_layers.layer, norm_layers.module


def test_success_commits_a_method_of_the_layer_that_calls_the_kernel_itself(
    layer: Callable[..., Layer], module: str
):
    bound_to = []

    def bind(layer: Any, kernel: Callable[..., Any], own: Any) -> Forward:
        bound_to.append(kernel)
        return direct(layer, kernel, own)

    rms = layer("working", "reference", bind=bind)
    assert_right(rms.forward(**arguments()))
    ((life, forward),) = rms.commits
    assert life is rms.forward
    assert isinstance(forward, MethodType)
    assert forward.__self__ is rms.layer
    assert is_ours(forward)
    assert bound_to[-1] is load_target(f"{module}:working")


def test_success_logs_what_ran_and_warns_of_nothing(
    layer: Callable[..., Layer], caplog: pytest.LogCaptureFixture
):
    rms = layer("working", "reference")
    assert rms.log == []
    rms.forward(**arguments())
    assert rms.log == ["flagos(flagos.working)"]
    assert caplog.records == []


def test_failed_first_call_logs_what_ran(layer: Callable[..., Layer]):
    rms = layer("half_done", "reference")
    rms.forward(**arguments())
    assert rms.log == ["reference(reference)"]


def test_kernel_that_wrote_before_it_failed_harms_nothing(layer: Callable[..., Layer], module: str):
    rms, given = layer("half_done", "working"), arguments()
    assert_right(rms.forward(**given))
    assert_untouched(given)
    assert import_module(module).calls == ["half_done", "working"]
    assert rms.log == ["flagos(flagos.working)"]


def test_what_lies_between_the_rows_is_not_touched_by_putting_back(layer: Callable[..., Layer]):
    given = arguments()
    wide = given["x"].as_strided((6, 64), (64, 1))
    before = wide.clone()
    layer("half_done", "reference").forward(**given)
    assert torch.equal(wide, before)


def test_positional_arguments_are_protected_too(layer: Callable[..., Layer]):
    given = arguments()
    assert_right(layer("half_done", "reference").forward(*given.values()))
    assert_untouched(given)


def test_failure_is_one_warning_with_its_cause(
    layer: Callable[..., Layer], caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest
):
    layer("half_done", "reference").forward(**arguments())
    layer("half_done", "reference").forward(**arguments())  # another layer of the same class
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.name == "sglang_fl.dispatch.life"
    assert record.getMessage() == (
        f"RMSNorm-{request.node.name}: flagos.half_done of rms_norm failed in its first call and is "
        f"replaced: RuntimeError: launch failed: invalid configuration"
    )


def test_where_it_failed_is_told_at_debug(layer: Callable[..., Layer], caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG, logger="sglang_fl")
    layer("half_done", "reference").forward(**arguments())
    assert [record.levelname for record in caplog.records] == ["WARNING", "DEBUG"]
    assert "in half_done" in caplog.text


def test_kernel_that_refuses_the_call_gives_the_next_candidate(
    layer: Callable[..., Layer], caplog: pytest.LogCaptureFixture
):
    rms = layer("refusing", "working")
    assert_right(rms.forward(**arguments()))
    assert rms.log == ["flagos(flagos.working)"]
    assert "UnsupportedError: rows of 48 are not supported" in caplog.text


@pytest.mark.parametrize(
    ("broken", "cause"),
    [
        ("other_signature", "VendorError: rms_norm: the kernel"),
        ("missing", "VendorError: target"),
        ("no_such_package.kernels:rms_norm", "ModuleNotFoundError: No module named 'no_such_package'"),
    ],
)
def test_kernel_that_cannot_be_loaded_gives_the_next_candidate(
    layer: Callable[..., Layer], module: str, caplog: pytest.LogCaptureFixture, broken: str, cause: str
):
    rms = layer(broken, "reference")
    assert_right(rms.forward(**arguments()))
    assert rms.log == ["reference(reference)"]
    assert f"is replaced: {cause}" in caplog.text
    assert import_module(module).calls == []


def test_module_that_raises_when_imported_gives_the_next_candidate(
    layer: Callable[..., Layer], write_module: Callable[[str], str], caplog: pytest.LogCaptureFixture
):
    broken = write_module("raise OSError('libtoy.so: cannot open shared object file')\n")
    rms = layer(f"{broken}:rms_norm", "reference")
    assert_right(rms.forward(**arguments()))
    assert "OSError: libtoy.so: cannot open shared object file" in caplog.text


@pytest.mark.parametrize(
    ("name", "error", "match"),
    [
        ("half_done", RuntimeError, r"^launch failed: invalid configuration$"),
        ("other_signature", VendorError, r"the contract says \(x, weight, eps, residual=None, post"),
        ("missing", VendorError, "has no function 'missing'"),
        ("no_such_package.kernels:rms_norm", ModuleNotFoundError, "no_such_package"),
    ],
)
def test_strict_raises_the_original_error(
    layer: Callable[..., Layer],
    caplog: pytest.LogCaptureFixture,
    name: str,
    error: type[Exception],
    match: str,
):
    rms, given = layer(name, "reference", strict=True), arguments()
    with pytest.raises(error, match=match):
        rms.forward(**given)
    assert_untouched(given)
    assert (rms.log, rms.commits, caplog.records) == ([], [], [])


def test_strict_changes_nothing_where_nothing_fails(layer: Callable[..., Layer]):
    rms = layer("working", "reference", strict=True)
    assert_right(rms.forward(**arguments()))
    assert rms.log == ["flagos(flagos.working)"]


def test_error_names_all_that_were_tried_where_all_failed(layer: Callable[..., Layer]):
    rms, given = layer("half_done", "missing"), arguments()
    tried = "flagos.half_done: RuntimeError: .*; flagos.missing: VendorError: "
    with pytest.raises(NoImplementationError, match=f"no implementation of rms_norm can run it: {tried}"):
        rms.forward(**given)
    assert_untouched(given)
    assert (rms.log, rms.commits) == ([], [])


def test_failure_after_the_kernel_has_run_is_not_blamed_on_it(
    layer: Callable[..., Layer], module: str, caplog: pytest.LogCaptureFixture
):
    def bind(layer: Any, kernel: Callable[..., Any], own: Any) -> Forward:
        def forward(layer: Any, **kwargs: Any) -> Any:
            kernel(**kwargs)
            raise RuntimeError("SGLang's own path failed")

        return forward

    rms = layer("working", "reference", bind=bind)
    with pytest.raises(RuntimeError, match="SGLang's own path failed"):
        rms.forward(**arguments())
    assert import_module(module).calls == ["working"]
    assert (rms.log, rms.commits, caplog.records) == ([], [], [])


def test_whoever_keeps_the_first_callable_gets_the_bound_kernel(layer: Callable[..., Layer], module: str):
    rms = layer("half_done", "working")
    for _ in range(3):
        assert_right(rms.forward(**arguments()))
    assert import_module(module).calls == ["half_done", "working", "working", "working"]
    assert len(rms.commits) == 1
    assert rms.log == ["flagos(flagos.working)"]


def test_later_failure_is_raised_as_it_is(layer: Callable[..., Layer]):
    rms = layer("half_done_later", "reference")
    rms.forward(**arguments())
    with pytest.raises(RuntimeError, match="out of memory"):
        rms.forward(**arguments())
    assert rms.log == ["flagos(flagos.half_done_later)"]


def test_kernel_gets_the_callers_own_tensors(layer: Callable[..., Layer]):
    given = arguments()
    outputs = layer("in_place", "reference").forward(**given)
    assert outputs[0] is given["x"]
    assert outputs[1] is given["residual"]
    assert_right(outputs)


def test_op_that_writes_nothing_keeps_no_copies(
    layer: Callable[..., Layer], module: str, monkeypatch: pytest.MonkeyPatch
):
    # Without residual rms_norm may write nothing; a copy would cost memory for nothing.
    monkeypatch.setattr(Tensor, "clone", None)
    layer("working").forward(**arguments(residual=False))
    assert import_module(module).calls == ["working"]


def casting(layer: Any, kernel: Callable[..., Any], own: Any) -> Forward:
    """Bind as the adapter of a layer that needs an option."""
    return direct(layer, with_options(kernel, {"cast_x_before_out_mul": True}), own)


def test_kernel_that_lacks_an_option_is_passed_over_without_a_warning(
    layer: Callable[..., Layer], module: str, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO, "sglang_fl")
    rms = layer("working", "reference", bind=casting, strict=True)
    rms.forward(**arguments())
    assert rms.log == ["reference(reference)"]
    assert import_module(module).calls == []
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "cannot run this layer: it does not take cast_x_before_out_mul" in caplog.text


def test_error_says_which_option_no_kernel_takes(layer: Callable[..., Layer]):
    rms = layer("working", bind=casting)
    with pytest.raises(
        NoImplementationError, match=r"flagos.working: it does not take cast_x_before_out_mul"
    ):
        rms.forward(**arguments())


def test_of_a_pool_only_the_rows_of_the_call_are_kept_and_put_back(write_module: Callable[[str], str]):
    op = OPS["fused_sigmoid_gating_delta_rule_update"]
    given = next(case for case in op.cases if case.name == "padding").arguments(torch.float32)
    pool = given["initial_state"].clone()

    def burning(*args: Any, **kwargs: Any) -> Any:
        given["initial_state"].fill_(7.0)
        raise RuntimeError("the chip has caught fire")

    burning.__signature__ = op.signature  # type: ignore[attr-defined]
    trial = Trial(op, burning)
    with pytest.raises(NextCandidateError):
        trial(**given)
    assert str(trial.fault) == "RuntimeError: the chip has caught fire"
    rows = [4, 0]
    assert torch.equal(given["initial_state"][rows], pool[rows])
    assert (given["initial_state"][[1, 2, 3, 5]] == 7.0).all()


def test_kernel_that_cannot_be_loaded_is_tried_once_for_all_layers(
    write_module: Callable[[str], str], tmp_path: Path
):
    counter = tmp_path / "imports"
    module = write_module(f"open({str(counter)!r}, 'a').write('x')\nimport no_such_kernel_library\n")
    op = OPS["rms_norm"]
    candidates = (
        OpImpl(op.name, BackendKind.FLAGOS, "flagos", f"{module}:rms_norm"),
        OpImpl(op.name, BackendKind.REFERENCE, "reference", op.target),
    )
    for number in range(3):
        plan = LayerPlan(
            "forward_native", adapter=Adapter("a:B", op, direct), resolution=Resolution(op, candidates)
        )
        rms = Layer(plan, "RMSNorm-once", tmp_path / f"{number}.log")
        assert_right(rms.forward(**arguments()))
        assert rms.log == ["reference(reference)"]
    assert counter.read_text() == "x"
