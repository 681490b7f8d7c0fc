"""Call kernels on meta tensors, under the schemas and shape functions of a ``torch_npu`` wheel.

``python meta_calls.py FOLDER`` with an unpacked wheel prints what is wrong as one JSON list; with
``OP=FOLDER ...`` behind it, such a list for each of these ops as the package in that folder has it. A process
of its own, because shape functions of two ATen operators are replaced. ``torch_npu`` itself is not imported:
without its driver it cannot be.
"""

import importlib
import json
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from sglang_fl.errors import UnsupportedError
from sglang_fl.ops import OPS, Case, Kernel, Op, lacking
from sglang_fl.vendor import load_target

DTYPES_OF_MODELS = (torch.float16, torch.bfloat16, torch.float32)

#: What the shape functions take from the real package.
DTYPES = {
    "int4": 285,
    "hifloat8": 290,
    "float8_e5m2": 291,
    "float8_e4m3fn": 292,
    "float8_e8m0fnu": 293,
    "float4_e2m1fn_x2": 296,
    "float4_e1m2fn_x2": 297,
}


class Anything:
    """Has every attribute; the error codes of the real package are such."""

    def __getattr__(self, name: str) -> str:
        return name


class Operators(types.ModuleType):
    """``torch_npu`` as kernels see it: its functions are the operators."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(torch.ops.npu, name)


def install_schemas(wheel: Path) -> torch.library.Library:
    listed = yaml.safe_load((wheel / "torch_npu/csrc/aten/npu_native_functions_by_codegen.yaml").read_text())
    library = torch.library.Library("npu", "DEF")
    for entry in listed["custom"]:
        library.define(re.sub(r"\bself\b(?=[,)])", "input", entry["func"]))
    return library


def install_modules() -> None:
    package = Operators("torch_npu")
    vars(package).update(DTYPES, __path__=[])
    parts: dict[str, dict[str, Any]] = {
        "utils": {},
        "utils._error_code": {"ErrCode": Anything(), "ops_error": str},
        "npu": {},
        "npu.utils": {"get_cann_version": lambda *_: "0", "_is_gte_cann_version": lambda *_: True},
        "npu._backends": {"get_soc_version": lambda: 220},
    }
    sys.modules["torch_npu"] = package
    package.npu = types.SimpleNamespace(get_soc_version=lambda: 220)
    for name, members in parts.items():
        module = types.ModuleType(f"torch_npu.{name}")
        vars(module).update(members, __path__=[])
        sys.modules[module.__name__] = module


def install_shape_functions(wheel: Path) -> None:
    path = wheel / "torch_npu/op_plugin/meta/_meta_registrations.py"
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), {"__name__": "meta_registrations"})


def faults_in(folder: str, op: str) -> list[str]:
    """Return the faults of an op as the package in a folder has it."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "sglang_fl_ascend"]:
        del sys.modules[name]
    sys.path.insert(0, folder)
    importlib.invalidate_caches()
    try:
        return list(faults(op))
    finally:
        sys.path.remove(folder)


def faults(wanted: str = "") -> Iterator[str]:
    """Yield what is wrong with the results' shapes and dtypes, and every call that is refused."""
    for impl in importlib.import_module("sglang_fl_ascend").ASCEND.impls:
        if impl.id != "vendor.ascend" or (wanted and impl.op != wanted):
            continue
        op, kernel = OPS[impl.op], load_target(impl.target)
        answers = [call(op, kernel, case, dtype) for case in op.cases for dtype in DTYPES_OF_MODELS]
        if all(answer is None for answer in answers):
            yield f"{op}: no case was called"
        yield from filter(None, answers)


def call(op: Op, kernel: Kernel, case: Case, dtype: torch.dtype) -> str | None:
    """Return what is wrong with a call, an empty text if nothing is, None where the kernel takes it not."""
    given = case.arguments(dtype)
    if "cos_sin_cache" in given:  # as SGLang calls it: the cache has the model's dtype
        given["cos_sin_cache"] = given["cos_sin_cache"].to(dtype)
    if lacking(kernel, [name for name in op.options if name in given]):
        return None
    try:
        results = form(kernel(**{name: on_meta(op, value) for name, value in given.items()}))
    except UnsupportedError:
        return None
    except Exception as error:  # noqa: BLE001 - whatever the dispatcher or a shape function says
        return f"{op}[{case}-{dtype}]: {type(error).__name__}: {error}"
    expected = form(op.reference(**given))
    return "" if results == expected else f"{op}[{case}-{dtype}]: {results} instead of {expected}"


def on_meta(op: Op, value: Any) -> Any:
    """Return an argument without values; of an op whose lengths a kernel reads, integers keep them."""
    is_read = bool(op.bounds) and isinstance(value, Tensor) and not value.is_floating_point()
    return value.to("meta") if isinstance(value, Tensor) and not is_read else value


def form(results: Tensor | tuple[Tensor, ...]) -> list[tuple[Any, ...]]:
    tensors = (results,) if isinstance(results, Tensor) else results
    return [(tuple(tensor.shape), str(tensor.dtype)) for tensor in tensors]


def main() -> None:
    """Print the faults."""
    wheel = Path(sys.argv[1])
    library = install_schemas(wheel)
    install_modules()
    install_shape_functions(wheel)
    words = [word.partition("=") for word in sys.argv[2:]]
    print(json.dumps([faults_in(folder, op) for op, _, folder in words] if words else list(faults())))
    library._destroy()


if __name__ == "__main__":
    main()
