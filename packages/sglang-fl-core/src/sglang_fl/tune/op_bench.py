"""Judge and time implementations of one op at recorded calls; this is the process that they may bring down.

Each answer is a line of JSON behind ``ANSWER``, written as soon as it is known.
"""

import functools
import inspect
import json
import random
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sglang_fl.dispatch.kept_calls import unpacked
from sglang_fl.dispatch.op_check import Given, violations
from sglang_fl.dispatch.trial import device_of, wait_for
from sglang_fl.errors import UnsupportedError
from sglang_fl.ops import OPS, Kernel, Op, lacking
from sglang_fl.settings import prepare_environment
from sglang_fl.startup import configure
from sglang_fl.tune.timing import Side, in_turn, sets_for, side_of
from sglang_fl.vendor import load_target

__all__ = ["ANSWER", "judge", "time_calls"]

ANSWER = "SGLANG_FL_TUNE "


def judge(op_name: str, targets: Mapping[str, str], files: Sequence[str]) -> None:
    """Hold each implementation against float64 at each call, with the bounds of ``sglang-fl replay``."""
    prepare_environment(configure().registry.vendor)
    op = OPS[op_name]
    for impl, target in targets.items():
        state, text = _judged(op, target, files)
        _answer({"impl": impl, "state": state, "text": text})


def time_calls(op_name: str, targets: Mapping[str, str], files: Sequence[str], graphs: bool) -> None:
    """Time implementations in turn, in a random order, at each call.

    Raises
    ------
    NoGraphError : graphs are asked for, and a call cannot be captured; what follows in this process cannot
        be trusted
    """
    prepare_environment(configure().registry.vendor)
    op, draw = OPS[op_name], random.Random(7)
    kernels = {impl: load_target(target) for impl, target in targets.items()}
    for number, file in enumerate(files):
        how, times = _timed(op, kernels, file, graphs, draw)
        _answer({"call": number, "how": how, "times": times})


def _answer(said: Mapping[str, Any]) -> None:
    print(f"{ANSWER}{json.dumps(said)}", flush=True)  # noqa: T201 - to its parent


def _arguments(file: str) -> dict[str, Any]:
    kept = torch.load(Path(file), weights_only=True)
    return unpacked(kept["arguments"], kept["device"])


def _given(op: Op, kernel: Kernel, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments that the kernel takes.

    Raises
    ------
    UnsupportedError : it lacks an option that the call sets
    """
    usual = {name: parameter.default for name, parameter in op.signature.parameters.items()}
    needed = [name for name in op.options if name in arguments and arguments[name] is not usual[name]]
    missing = lacking(kernel, needed)
    if missing:
        raise UnsupportedError(f"it does not take {', '.join(missing)}")
    taken = inspect.signature(kernel).parameters
    return {name: value for name, value in arguments.items() if name in taken}


def _judged(op: Op, target: str, files: Iterable[str]) -> tuple[str, str]:
    try:
        kernel = load_target(target)
        op.check_signature(kernel)
        for file in files:
            arguments = _arguments(file)
            before = Given(op, arguments)
            results = kernel(**_given(op, kernel, arguments))
            wait_for(device_of(arguments))
            found = violations(op, "a recorded call", before, results, arguments)
            if found:
                return "wrong", str(found[0])
    except UnsupportedError as error:
        return "refused", str(error)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
        return "raised", f"{type(error).__name__}: {error}"
    return "right", ""


def _timed(
    op: Op, kernels: Mapping[str, Kernel], file: str, graphs: bool, draw: random.Random
) -> tuple[str, dict[str, list[float]]]:
    device = device_of(_arguments(file))
    sides = {impl: _side(op, kernel, file, graphs, device) for impl, kernel in kernels.items()}
    return in_turn(sides, device, graphs, draw)


def _side(op: Op, kernel: Kernel, file: str, graphs: bool, device: torch.device) -> Side:
    sets = [_arguments(file)]
    size = sum(v.numel() * v.element_size() for v in sets[0].values() if isinstance(v, Tensor))
    sets += [_arguments(file) for _ in range(sets_for(size, device) - 1)]
    calls = [functools.partial(kernel, **_given(op, kernel, arguments)) for arguments in sets]
    written = [value for arguments in sets for value in _written(op, arguments)]
    return side_of(calls, written, device, graphs)


def _written(op: Op, arguments: Mapping[str, Any]) -> list[Tensor]:
    values = (arguments[name] for name in op.may_write(arguments))
    return [value for value in values if isinstance(value, Tensor)]
