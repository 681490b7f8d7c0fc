"""The life of a layer: candidates in order, nothing harmed, one bound kernel; excluded calls at any time."""

import copy
import gc
import logging
import pickle
import weakref
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import MethodType
from typing import Any

import pytest
import torch
from torch import Tensor

from sglang_fl.dispatch.life import MOST_EXCLUDED, LayerLife, is_ours
from sglang_fl.dispatch.plan import Bind, Forward, LayerPlan
from sglang_fl.dispatch.resolution import Resolution
from sglang_fl.dispatch.trial import NextCandidateError, Trial
from sglang_fl.errors import REFUSALS, ContractError, NoImplementationError, VendorError
from sglang_fl.logs.dispatch_log import DispatchLog
from sglang_fl.ops import OPS, with_options
from sglang_fl.sglang_adapter.layers.adapter import Adapter
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
        plan = LayerPlan(
            "forward_native", adapter=Adapter("a:B", op, direct), resolution=Resolution(op, candidates)
        )
        rms = Layer(plan, "RMSNorm-once", tmp_path / f"{number}.log")
        assert_right(rms.forward(**arguments()))
        assert rms.log == ["reference(reference)"]
    assert counter.read_text() == "x"


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


EXCLUDED = {"residual": torch.zeros(6, 48, dtype=torch.float64)}


def excluded() -> dict[str, Any]:
    """Make a call that the contract excludes: the residual has another dtype than x."""
    return arguments() | EXCLUDED


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


ROWS = """
    from sglang_fl.ops import OPS

    def rms_norm(x, weight, eps, residual=None):
        if x.numel():
            raise RuntimeError("launch failed")  # nothing is launched for no rows
        return OPS["rms_norm"].reference(x, weight, eps, residual)

    def empty_fails(x, weight, eps, residual=None):
        if not x.numel():
            raise RuntimeError("a grid of nothing")
        return OPS["rms_norm"].reference(x, weight, eps, residual)
"""


def test_call_without_rows_decides_and_logs_nothing(layer: Callable[..., Layer], write_module):
    module = write_module(ROWS)
    rms = layer(f"{module}:rms_norm", "reference")
    for _ in range(MOST_EXCLUDED + 1):
        assert rms(x=torch.empty(0, 48), weight=torch.ones(48), eps=1e-6).shape == (0, 48)
    assert (rms.log, rms.commits) == ([], [])
    assert_right(rms(**arguments()))
    assert rms.log == ["reference(reference)"]


def test_kernel_that_fails_without_rows_is_replaced_too(layer: Callable[..., Layer], write_module):
    rms = layer(f"{write_module(ROWS)}:empty_fails", "reference")
    assert rms(x=torch.empty(0, 48), weight=torch.ones(48), eps=1e-6).shape == (0, 48)
    assert rms.log == []


WRONG = """
    import torch
    from sglang_fl.ops import OPS

    def reference(*args):
        return OPS["rms_norm"].reference(*args)

    def nothing(x, weight, eps, residual=None):
        return None

    def one_of_two(x, weight, eps, residual=None):
        return reference(x, weight, eps, residual)[0]

    def wide(x, weight, eps, residual=None):
        return tuple(t.double() for t in reference(x, weight, eps, residual))

    def short(x, weight, eps, residual=None):
        return tuple(t[:-1] for t in reference(x, weight, eps, residual))
"""


@pytest.mark.parametrize(
    ("name", "returned"),
    [
        ("nothing", "NoneType"),
        ("one_of_two", r"float32 \(6, 48\)"),
        ("wide", r"\(float64 \(6, 48\), float64 \(6, 48\)\)"),
        ("short", r"\(float32 \(5, 48\), float32 \(5, 48\)\)"),
    ],
)
def test_what_a_kernel_returns_at_first_is_held_against_the_contract(
    layer: Callable[..., Layer], write_module, caplog: pytest.LogCaptureFixture, name: str, returned: str
):
    rms = layer(f"{write_module(WRONG)}:{name}", "reference")
    assert_right(rms(**arguments()))
    assert rms.log == ["reference(reference)"]
    assert "VendorError: it returned" in caplog.text
    with pytest.raises(VendorError, match=f"it returned {returned}, the contract says "):
        layer(f"{write_module(WRONG)}:{name}", strict=True)(**arguments())


SINGLE = """
    def in_a_list(x):
        return [x[:, :4].clone()]

    def elsewhere(x):
        return x[:, :4].to("meta")

    def sparse(x):
        return x[:, :4].to_sparse()
"""


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("in_a_list", r"it returned \(float32 \(3, 4\)\), the contract says float32 \(3, 4\)"),
        ("elsewhere", "it returned a tensor on meta, torch.strided, and the call's are on cpu"),
        ("sparse", "it returned a tensor on cpu, torch.sparse_coo, and the call's are on cpu"),
    ],
)
def test_a_single_result_is_a_tensor_where_the_call_is(write_module, name: str, told: str):
    kernel = load_target(f"{write_module(SINGLE)}:{name}")
    with pytest.raises(VendorError, match=told):
        Trial(OPS["silu_and_mul"], kernel, strict=True)(torch.ones(3, 8))


@pytest.mark.parametrize("refusal", ["UnsupportedError", "ContractError"])
def test_a_kernel_that_refuses_after_it_has_written_hands_on_what_it_was_given(write_module, refusal: str):
    module = write_module(
        f"""
        from sglang_fl.errors import ContractError, UnsupportedError

        def rms_norm(x, weight, eps, residual=None):
            x.fill_(7)
            residual.fill_(7)
            raise {refusal}("not this call")
        """
    )
    given = arguments()
    with pytest.raises((NextCandidateError, ContractError)):
        Trial(OPS["rms_norm"], load_target(f"{module}:rms_norm"))(**given)
    assert_untouched(given)


def test_a_kernel_that_refuses_after_it_has_harmed_what_nobody_kept_ends_the_call(write_module):
    module = write_module(
        """
        from sglang_fl.errors import UnsupportedError

        def silu_and_mul(x):
            x.fill_(7)
            raise UnsupportedError("not this call")
        """
    )
    with pytest.raises(VendorError, match="it wrote x, which the contract does not allow, and failed"):
        Trial(OPS["silu_and_mul"], load_target(f"{module}:silu_and_mul"))(torch.ones(3, 8))


@pytest.mark.parametrize("op", OPS.values(), ids=str)
def test_every_reference_says_what_it_returns_without_looking_at_data(op: Any):
    for case in op.cases:
        given = case.arguments(torch.bfloat16)
        like = op.results_like(given)
        outputs = op.reference(**given)
        returned = (outputs,) if isinstance(outputs, Tensor) else outputs
        assert [(t.shape, t.dtype) for t in like] == [(t.shape, t.dtype) for t in returned[: len(like)]]
        assert op.like is not None or len(like) == len(returned)


def test_memory_that_runs_out_is_raised_and_decides_nothing(layer: Callable[..., Layer], write_module):
    module = write_module(
        """
        import torch
        from sglang_fl.ops import OPS

        calls = []

        def rms_norm(x, weight, eps, residual=None):
            calls.append(1)
            if len(calls) == 1:
                x.fill_(7)
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return OPS["rms_norm"].reference(x, weight, eps, residual)
        """
    )
    rms, given = layer(f"{module}:rms_norm", "reference"), arguments()
    with pytest.raises(torch.OutOfMemoryError):
        rms(**given)
    assert_untouched(given)
    assert (rms.log, rms.commits) == ([], [])
    assert_right(rms(**arguments()))
    assert rms.log == ["flagos(flagos." + module + ":rms_norm)"]


@pytest.mark.parametrize(
    "text",
    [
        "NPU out of memory. Tried to",
        "DefaultCPUAllocator: can't allocate memory",
        "CUDA error: out of memory",
        "Triton Error [CUDA]: out of memory",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)",
        "HIP out of memory. Tried to allocate 2 GiB",
        "XPU out of memory. Tried to allocate 2 GiB",
        "call aclnnMatmul failed, error code 207001: Memory_Allocation_Failure",
    ],
)
def test_memory_that_runs_out_is_known_by_its_text_on_other_devices(
    layer: Callable[..., Layer], write_module, text: str
):
    module = write_module(f"def rms_norm(x, weight, eps, residual=None):\n    raise RuntimeError({text!r})\n")
    with pytest.raises(RuntimeError, match=text[:12]):
        layer(f"{module}:rms_norm", "reference")(**arguments())


def test_each_different_cause_is_told(
    layer: Callable[..., Layer], write_module, caplog: pytest.LogCaptureFixture
):
    module = write_module(
        """
        causes = iter(["wrong stride", "wrong stride", "no such tile"])

        def rms_norm(x, weight, eps, residual=None):
            raise RuntimeError(next(causes))
        """
    )
    for _ in range(3):
        layer(f"{module}:rms_norm", "reference")(**arguments())
    assert [record.getMessage().rpartition(": ")[2] for record in caplog.records] == [
        "wrong stride",
        "no such tile",
    ]


ALIVE = """
    from sglang_fl.errors import UnsupportedError

    def failing(x, weight, eps, residual=None):
        raise RuntimeError("launch failed")

    def refusing(x, weight, eps, residual=None):
        raise UnsupportedError("not this one")

    def chained(x, weight, eps, residual=None):
        try:
            failing(x, weight, eps, residual)
        except RuntimeError as error:
            raise ValueError("a second one") from error
"""


@pytest.mark.parametrize(
    "kernel", ["failing", "refusing", "chained", "missing", "no_such_package.kernels:rms"]
)
@pytest.mark.parametrize("last", ["reference", ""], ids=["replaced", "left to SGLang"])
def test_no_tensor_of_a_call_outlives_it(layer: Callable[..., Layer], write_module, kernel: str, last: str):
    target = kernel if ":" in kernel else f"{write_module(ALIVE)}:{kernel}"
    alive = []
    kept = []
    gc.disable()  # what only the collector would free counts as alive
    try:
        for _ in range(3):
            rms = layer(target, *filter(None, [last]), or_own=not last)
            given = arguments()
            alive += [weakref.ref(value) for value in given.values() if isinstance(value, Tensor)]
            rms(**given)
            kept.append(rms)
            del given, rms
        assert [ref for ref in alive if ref() is not None] == []
    finally:
        gc.enable()


def test_a_copy_of_a_decided_layer_is_bound_to_itself(layer: Callable[..., Layer]):
    rms = layer("reference", bind=scaling)
    rms.layer.scale = 2.0
    rms(**arguments())
    twin = copy.deepcopy(rms.layer)
    twin.scale = 3.0
    assert twin._forward_method.__self__ is twin
    ours, theirs = (each._forward_method(**arguments())[0] for each in (rms.layer, twin))
    assert torch.allclose(ours * 1.5, theirs)


def scaling(layer: Any, kernel: Callable[..., Any], own: Any) -> Forward:
    """Bind as an adapter that reads the layer in each call."""

    def forward(layer: Any, **kwargs: Any) -> Any:
        try:
            normed, total = kernel(**kwargs)
            return normed * layer.scale, total
        except REFUSALS as refusal:
            own.because(refusal)
        return own(layer, **kwargs)

    return forward


def test_a_copy_of_a_layer_before_its_first_call_decides_for_itself(layer: Callable[..., Layer]):
    rms = layer("reference", bind=scaling)
    rms.layer.scale = 2.0
    twin = copy.deepcopy(rms.layer)
    twin.scale = 3.0
    twin._forward_method(**arguments())
    assert twin._forward_method.__self__ is twin
    assert isinstance(rms.layer._forward_method, LayerLife)


def test_excluded_calls_of_a_copy_go_to_sglangs_forward_of_the_copy(layer: Callable[..., Layer]):
    rms = layer("reference")
    rms(**arguments())
    twin = copy.deepcopy(rms.layer)
    twin.forward_native = None  # type: ignore[method-assign] - the function is the class's
    seen = []
    Norm.forward_native, kept = lambda self, **given: seen.append(self), Norm.forward_native  # type: ignore
    try:
        later = layer("reference")
        later(**arguments())
        another = copy.deepcopy(later.layer)
        another._forward_method(**excluded())
    finally:
        Norm.forward_native = kept  # type: ignore[method-assign]
    assert seen == [another]


@pytest.mark.parametrize("calls", [0, 1])
def test_a_pickled_layer_has_sglangs_own_forward_as_without_the_plugin(
    layer: Callable[..., Layer], calls: int
):
    rms = layer("reference")
    for _ in range(calls):
        rms(**arguments())
    twin = pickle.loads(pickle.dumps(rms.layer))
    assert twin._forward_method == twin.forward_native


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
        with pytest.raises(AttributeError):
            layer("reference", bind=broken, strict=True)(**arguments())


def test_a_kernel_that_harms_what_nobody_kept_ends_the_call(layer: Callable[..., Layer], write_module):
    module = write_module(
        """
        def rms_norm(x, weight, eps, residual=None):
            weight.fill_(0)
            raise RuntimeError("launch failed")
        """
    )
    with pytest.raises(VendorError, match="it wrote weight, which the contract does not allow, and failed"):
        layer(f"{module}:rms_norm", "reference")(**arguments())


def test_every_candidate_may_refuse_a_call_which_then_is_sglangs(layer: Callable[..., Layer]):
    rms = layer("refusing")
    for _ in range(MOST_EXCLUDED):
        assert rms(**arguments()) == "SGLang's own"
    assert [forward for _, forward in rms.commits] == [rms.layer.forward_native]
