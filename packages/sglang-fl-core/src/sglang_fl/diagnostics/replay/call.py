"""Run one kept call again and hold it against float64; this is the process that it may bring down."""

import inspect
import json
from pathlib import Path
from typing import Any

import torch

from sglang_fl.dispatch.kept_calls import unpacked
from sglang_fl.dispatch.op_check import Given, violations
from sglang_fl.dispatch.trial import device_of, wait_for
from sglang_fl.ops import OPS, Op
from sglang_fl.settings import prepare_environment
from sglang_fl.startup import configure
from sglang_fl.vendor import load_target

__all__ = ["run"]


def run(path: str, first: int, count: int) -> None:
    """Run a call and print what came of it as one line of JSON: ``{"state": "wrong", "text": "..."}``.

    Parameters
    ----------
    path : of the file
    first, count : the rows that are taken of it; a count of 0 takes all
    """
    kept = torch.load(Path(path), weights_only=True)
    op = OPS[kept["op"]]
    prepare_environment(configure().registry.vendor)
    kernel = load_target(kept["target"])
    arguments = unpacked(kept["arguments"], kept["device"])
    if count:
        arguments = _rows(op, arguments, first, count)
    print(json.dumps(_judged(op, kept["layer"], kernel, arguments)))  # noqa: T201 - to its parent


def _rows(op: Op, arguments: dict[str, Any], first: int, count: int) -> dict[str, Any]:
    return {
        name: value.narrow(op.rows[name], first, count) if name in op.rows and value is not None else value
        for name, value in arguments.items()
    }


def _judged(op: Op, layer: str, kernel: Any, arguments: dict[str, Any]) -> dict[str, str]:
    before = Given(op, arguments)
    defaults = inspect.signature(kernel).parameters
    given = {name: value for name, value in arguments.items() if name in defaults}
    try:
        results = kernel(**given)
        wait_for(device_of(arguments))
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer
        return {"state": "raised", "text": f"{type(error).__name__}: {error}"}
    found = violations(op, layer, before, results, arguments)
    return {"state": "wrong", "text": str(found[0])} if found else {"state": "right", "text": ""}
