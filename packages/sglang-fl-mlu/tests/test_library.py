"""The signatures that are written down: the library's are held against them, and every call is."""

import ast
import inspect
import logging
import sys
import types
from collections.abc import Callable
from pathlib import Path

import pytest

import sglang_fl_mlu
from sglang_fl.errors import VendorError
from sglang_fl_mlu.library import function
from sglang_fl_mlu.signatures import SIGNATURES

KERNELS = sorted((Path(sglang_fl_mlu.__file__).parent / "vendor").glob("*.py"))


@pytest.fixture
def library(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A ``torch_mlu_ops`` with the signatures that are written down."""
    module = types.ModuleType("torch_mlu_ops")
    vars(module).update(SIGNATURES, __version__="9.9")
    monkeypatch.setitem(sys.modules, "torch_mlu_ops", module)
    return module


def test_the_same_signature_is_taken(library):
    assert [function(name) for name in SIGNATURES] == list(SIGNATURES.values())


def active_with(parameters: str) -> Callable[..., object]:
    names: dict[str, Callable[..., object]] = {}
    exec(f"def active({parameters}): pass", names)
    return names["active"]


AS_IT_IS = "input, act_mode, is_gated, active_coef=1.0, high_precision=False, gelu_approximate='none'"


@pytest.mark.parametrize(
    ("parameters", "difference"),
    [
        ("input, mode, is_gated", "parameter 1 is 'mode' instead of 'act_mode'"),
        ("input, is_gated, act_mode", "parameter 1 is 'is_gated' instead of 'act_mode'"),
        ("input, act_mode", "there is no 'is_gated'"),
        ("input, act_mode, is_gated=False", "'is_gated' defaults to False instead of nothing"),
        ("input, act_mode, is_gated, active_coef=2.0", "'active_coef' defaults to 2.0 instead of 1.0"),
        ("input, act_mode, is_gated, active_coef", "'active_coef' defaults to nothing instead of 1.0"),
        ("input, act_mode, is_gated, beta", "parameter 3 is 'beta' instead of 'active_coef'"),
    ],
)
def test_another_signature_is_an_error_that_names_both(library, parameters, difference):
    library.active = active_with(parameters)
    with pytest.raises(VendorError) as raised:
        function("active")
    message = str(raised.value)
    taken, wanted = f"torch_mlu_ops.active 9.9 takes ({parameters})", f"was written for ({AS_IT_IS})"
    assert taken in message
    assert wanted in message
    assert difference in message


@pytest.mark.parametrize("parameters", ["input, act_mode, is_gated", f"{AS_IT_IS}, swiglu_limit=0"])
def test_options_that_nobody_passes_may_be_missing_or_more(library, parameters):
    library.active = active_with(parameters)
    assert function("active") is library.active


def test_one_more_without_a_default_is_an_error(library):
    library.active = active_with(f"{AS_IT_IS}, *, stream")
    with pytest.raises(VendorError, match="'stream' must be passed too"):
        function("active")


def test_a_parameter_that_is_keyword_only_is_an_error(library):
    library.active = active_with("input, act_mode, *, is_gated")
    with pytest.raises(VendorError, match="'is_gated' is keyword-only"):
        function("active")


def test_options_that_are_passed_must_be_there(library):
    library.active = active_with("input, act_mode, is_gated, active_coef=1.0")
    assert function("active", "active_coef") is library.active
    with pytest.raises(VendorError, match="there is no 'gelu_approximate'"):
        function("active", "gelu_approximate")


def test_a_missing_function_is_an_error_with_the_version(library):
    del library.active
    with pytest.raises(VendorError, match=r"torch_mlu_ops 9.9 has no function 'active'"):
        function("active")


def test_a_function_without_a_signature_is_taken_with_a_warning(library, caplog):
    library.active = dict.fromkeys  # built in, and silent about its parameters
    with caplog.at_level(logging.WARNING, "sglang_fl_mlu.library"):
        try:
            inspect.signature(library.active)
        except ValueError:
            assert function("active") is library.active
            assert "does not tell the signature of active" in caplog.text


def test_a_library_that_is_not_installed_is_an_import_error():
    with pytest.raises(ImportError, match="torch_mlu_ops"):
        function("active")


# What the kernels call


def asked_functions(tree: ast.Module) -> dict[str, list[str]]:
    """Return the functions that a kernel's module asks for, each with the options it announces."""
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    asked = [call for call in calls if isinstance(call.func, ast.Name) and call.func.id == "function"]
    words = [[ast.literal_eval(argument) for argument in call.args] for call in asked]
    return {name: options for name, *options in words}


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.stem)
def test_every_call_binds_to_its_signature_and_announces_what_it_passes(path: Path):
    tree = ast.parse(path.read_text())
    asked = asked_functions(tree)
    for call in [node for node in ast.walk(tree) if isinstance(node, ast.Call)]:
        name = getattr(call.func, "id", None)
        if name not in asked:
            continue
        signature = inspect.signature(SIGNATURES[name])
        given: list[object] = []
        for argument in call.args:  # the starred ones are group_arguments, which are two
            given += [None] * (2 if isinstance(argument, ast.Starred) else 1)
        bound = signature.bind(*given, **{word.arg: None for word in call.keywords})
        optional = {p.name for p in signature.parameters.values() if p.default is not p.empty}
        assert sorted(optional & bound.arguments.keys()) == sorted(asked[name]), name


@pytest.mark.on_chip("mlu")
def test_the_stand_in_has_the_signatures_that_are_written_down():
    import torch_mlu_ops

    for name, written in SIGNATURES.items():
        expected, found = (
            [(p.name, p.kind, p.default) for p in inspect.signature(f).parameters.values()]
            for f in (written, getattr(torch_mlu_ops, name))
        )
        assert found == expected, name


@pytest.mark.mlu
@pytest.mark.parametrize("name", SIGNATURES)
def test_the_installed_library_has_the_signature_that_is_written_down(name):
    function(name)
