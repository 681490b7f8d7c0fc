"""The first call of an op: candidates in order, nothing harmed, then one bound kernel."""

import logging
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from sglang_fl.dispatch.life import Choice, FirstCall, Forward, Trial
from sglang_fl.dispatch.resolution import Resolution
from sglang_fl.errors import NoImplementationError, VendorError
from sglang_fl.logs.dispatch_log import DispatchLog
from sglang_fl.ops import OPS, with_options
from sglang_fl.vendor import BackendKind, OpImpl, load_target

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


Bind = Callable[[Callable[..., Any], Forward], Forward]


def identity(kernel: Callable[..., Any], fall_through: Forward) -> Forward:
    return kernel


def forward_native(**_: Any) -> Any:
    """Stand for SGLang's own forward."""
    return "SGLang's own"


class Layer:
    """A layer's first forward, and what came of it."""

    def __init__(self, choice: Choice | None, name: str, path: Path, own: Forward = forward_native) -> None:
        self.path = path
        self.commits: list[tuple[Forward, Forward]] = []
        self.forward = FirstCall(lambda: choice, name, own, self._commit, DispatchLog(path))

    def _commit(self, first: Forward, bound: Forward) -> None:
        self.commits.append((first, bound))

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
        bind: Bind = identity,
        own: Forward = forward_native,
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
        choice = Choice(Resolution(op, candidates, strict=strict), bind, or_own)
        return Layer(choice, name, tmp_path / "dispatch.log", own)

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


def test_success_commits_the_bound_kernel_itself(layer: Callable[..., Layer], module: str):
    rms = layer("working", "reference")
    assert_right(rms.forward(**arguments()))
    ((first, bound),) = rms.commits
    assert first is rms.forward
    assert bound is load_target(f"{module}:working")


def test_success_logs_what_ran_and_warns_of_nothing(
    layer: Callable[..., Layer], caplog: pytest.LogCaptureFixture
):
    rms = layer("working", "reference")
    assert rms.log == []
    rms.forward(**arguments())
    assert rms.log == ["flagos(flagos.working)"]
    assert caplog.records == []


def test_bound_forward_is_what_bind_made_of_the_kernel(layer: Callable[..., Layer], module: str):
    made = []

    def bind(kernel: Callable[..., Any], fall_through: Forward) -> Forward:
        def forward(*args: Any, **kwargs: Any) -> Any:
            return kernel(*args, **kwargs)

        made.append((kernel, forward))
        return forward

    rms = layer("working", bind=bind)
    rms.forward(**arguments())
    ((_, bound),) = rms.commits
    assert bound is made[-1][1]
    assert made[-1][0] is load_target(f"{module}:working")


def test_failed_first_call_logs_what_ran(layer: Callable[..., Layer]):
    rms = layer("half_done", "reference")
    rms.forward(**arguments())
    assert rms.log == ["reference(reference)"]


def test_kernel_that_wrote_before_it_failed_harms_nothing(layer: Callable[..., Layer], module: str):
    rms, given = layer("half_done", "working"), arguments()
    assert_right(rms.forward(**given))
    assert_untouched(given)
    assert import_module(module).calls == ["half_done", "working"]
    assert rms.commits[0][1] is load_target(f"{module}:working")


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
    rms, given = layer("half_done", "missing", "refusing"), arguments()
    tried = (
        "flagos.half_done: RuntimeError: .*; flagos.missing: VendorError: .*; flagos.refusing: Unsupported"
    )
    with pytest.raises(NoImplementationError, match=f"no implementation of rms_norm can run it: {tried}"):
        rms.forward(**given)
    assert_untouched(given)
    assert (rms.log, rms.commits) == ([], [])


def falling_through_if(is_meant: Callable[[dict[str, Any]], bool]) -> Bind:
    """Make a bind that leaves some calls to SGLang's own path."""

    def bind(kernel: Callable[..., Any], fall_through: Forward) -> Forward:
        def forward(**kwargs: Any) -> Any:
            return fall_through(**kwargs) if is_meant(kwargs) else kernel(**kwargs)

        return forward

    return bind


def without_residual(given: dict[str, Any]) -> bool:
    return "residual" not in given


def test_call_that_fell_through_decides_nothing_and_is_logged_as_sglangs(
    layer: Callable[..., Layer], module: str
):
    rms = layer("working", "reference", bind=falling_through_if(without_residual))
    for _ in range(2):
        assert rms.forward(**arguments(residual=False)) == "SGLang's own"
    assert (rms.log, rms.commits, import_module(module).calls) == (["sglang(native)"], [], [])
    assert_right(rms.forward(**arguments()))
    assert rms.log == ["sglang(native)", "flagos(flagos.working)"]
    assert len(rms.commits) == 1


def raising(**_: Any) -> Any:
    raise RuntimeError("SGLang's own path failed")


@pytest.mark.parametrize("strict", [False, True])
def test_failure_of_sglangs_own_path_is_not_blamed_on_the_kernel(
    layer: Callable[..., Layer], caplog: pytest.LogCaptureFixture, strict: bool
):
    bind = falling_through_if(without_residual)
    rms = layer("working", "reference", strict=strict, bind=bind, own=raising)
    with pytest.raises(RuntimeError, match="SGLang's own path failed"):
        rms.forward(**arguments(residual=False))
    assert (rms.log, rms.commits, caplog.records) == ([], [], [])
    rms.forward(**arguments())
    assert rms.log == ["flagos(flagos.working)"]


def test_failure_after_the_kernel_has_run_is_not_blamed_on_it(
    layer: Callable[..., Layer], module: str, caplog: pytest.LogCaptureFixture
):
    def bind(kernel: Callable[..., Any], fall_through: Forward) -> Forward:
        def forward(**kwargs: Any) -> Any:
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


def test_layer_that_no_adapter_translates_is_sglangs_for_good(tmp_path: Path):
    rms = Layer(None, "RMSNorm", tmp_path / "dispatch.log")
    assert rms.log == []
    assert rms.forward(**arguments()) == "SGLang's own"
    assert rms.forward.__name__ == "forward_native"
    assert [forward for _, forward in rms.commits] == [forward_native]
    assert rms.log == ["sglang(native)"]


def test_layer_is_sglangs_where_no_kernel_can_run_it_and_sglang_is_the_last_resort(
    layer: Callable[..., Layer],
):
    rms, given = layer("half_done", "refusing", or_own=True), arguments()
    assert rms.forward(**given) == "SGLang's own"
    assert_untouched(given)
    assert [forward for _, forward in rms.commits] == [forward_native]
    assert rms.log == ["sglang(native)"]


def test_layer_without_any_kernel_is_sglangs_where_sglang_is_the_last_resort(layer: Callable[..., Layer]):
    rms = layer(or_own=True)
    assert rms.forward(**arguments()) == "SGLang's own"
    assert rms.log == ["sglang(native)"]


def casting(kernel: Callable[..., Any], fall_through: Forward) -> Forward:
    """Bind as the adapter of a layer that needs an option."""
    return with_options(kernel, {"cast_x_before_out_mul": True})


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
    with pytest.raises(RuntimeError, match="caught fire"):
        Trial(op, burning)(**given)
    rows = [4, 0]
    assert torch.equal(given["initial_state"][rows], pool[rows])
    assert (given["initial_state"][[1, 2, 3, 5]] == 7.0).all()


def test_call_that_the_contract_excludes_is_left_to_sglang(layer: Callable[..., Layer]):
    rms = layer("reference")
    excluded = arguments() | {"residual": torch.zeros(6, 48, dtype=torch.float64)}
    assert rms.forward(**excluded) == "SGLang's own"
    assert (rms.commits, rms.log) == ([], ["sglang(native)"])
    assert_right(rms.forward(**arguments()))
    assert rms.log == ["sglang(native)", "reference(reference)"]


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
        rms = Layer(Choice(Resolution(op, candidates), identity), "RMSNorm-once", tmp_path / f"{number}.log")
        assert_right(rms.forward(**arguments()))
        assert rms.log == ["reference(reference)"]
    assert counter.read_text() == "x"


def test_failure_of_sglangs_own_path_after_an_excluded_call_is_not_blamed_on_the_kernel(
    layer: Callable[..., Layer], caplog: pytest.LogCaptureFixture
):
    rms = layer("reference", own=raising, bind=falling_through_if(without_residual))
    excluded = arguments() | {"residual": torch.zeros(6, 48, dtype=torch.float64)}
    for given in (excluded, arguments(residual=False)):
        with pytest.raises(RuntimeError, match="SGLang's own path failed"):
            rms.forward(**given)
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []
    assert_right(rms.forward(**arguments()))
