"""Where there is no GPU, tests marked gpu are skipped, and Triton kernels run in Triton's interpreter."""

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import pytest

from sglang_fl_nvidia.probe import why_unavailable


def pytest_collectstart() -> None:
    """Choose where kernels run before the test files import Triton.

    Not when this file is read: the process that deals tests out would import torch for nothing.
    """
    if _absence():
        os.environ["TRITON_INTERPRET"] = "1"


@functools.cache
def _absence() -> str | None:
    return why_unavailable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.name.startswith("test_implementation_keeps_its_contract"):  # the kit's, of any chip
            item.add_marker("gpu")
        if _absence() and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason=f"needs an NVIDIA GPU: {_absence()}"))


@pytest.fixture(scope="session", autouse=True)
def _interpreter_without_idle_work() -> Iterator[None]:
    """Spare Triton's interpreter half of its time, and none of what it checks."""
    if not _absence():
        yield
        return
    from triton.runtime import interpreter

    builder = interpreter.interpreter_builder
    with pytest.MonkeyPatch.context() as patch:
        # It adds integers in 64 bits once more, and drops what that tells of an overflow unless it debugs.
        assert not builder.options.debug
        patch.setattr(builder, "options", dataclasses.replace(builder.options, sanitize_overflow=False))
        _replace_the_language_once_a_launch(interpreter, patch)
        _know_types(interpreter, patch)
        yield


def _replace_the_language_once_a_launch(interpreter: ModuleType, patch: pytest.MonkeyPatch) -> None:
    """Have it put NumPy into Triton's language once a launch, not in each call of a function by a kernel."""
    language = interpreter.tl
    replace, launch = interpreter._patch_lang, interpreter.GridExecutor.__call__
    replaced: set[ModuleType] = set()

    def replace_once(function: Callable[..., Any]) -> Any:
        known = function.__globals__.values()
        seen = {module for module in (language, language.core) if any(each is module for each in known)}
        if seen <= replaced:
            return None
        replaced.update(seen)
        return replace(function)

    def launch_anew(self: Any, *args: Any, **kwargs: Any) -> None:
        replaced.clear()  # the launch before has put the language back
        launch(self, *args, **kwargs)

    patch.setattr(interpreter, "_patch_lang", replace_once)
    patch.setattr(interpreter.GridExecutor, "__call__", launch_anew)


def _know_types(interpreter: ModuleType, patch: pytest.MonkeyPatch) -> None:
    """Have it keep NumPy's dtype for each of Triton's, and take a type of blocks as it is.

    It makes a table of all dtypes at each question, and builds a type of blocks out of itself.
    """
    pointer_type, block_type = interpreter.tl.pointer_type, interpreter.tl.block_type
    ask, build = interpreter._get_np_dtype, block_type.to_ir
    ask_once = functools.cache(ask)

    def dtype_of(given: Any) -> Any:
        return ask(given) if isinstance(given.scalar, pointer_type) else ask_once(given.scalar)

    def built(self: Any, builder: Any) -> Any:
        return self if builder is interpreter.interpreter_builder else build(self, builder)

    patch.setattr(interpreter, "_get_np_dtype", dtype_of)
    patch.setattr(block_type, "to_ir", built)
