"""Judge and time kernels of ATen ops at recorded calls; this is the process that they may bring down.

Each line of its input names an op and the files of its calls, and is answered by one of JSON: to import a
kernel library takes long, so one process serves for as many ops as do not end it.
"""

import functools
import json
import random
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as tree

from sglang_fl.aten import load_kernels
from sglang_fl.aten.call_check import FarRowsError, compare, overload_of, why_not_judged
from sglang_fl.aten.recorded_calls import load_call
from sglang_fl.aten.switchboard import AtenSwitchboard
from sglang_fl.dispatch.faults import is_out_of_memory
from sglang_fl.dispatch.trial import wait_for
from sglang_fl.logs.own_output import own_output
from sglang_fl.startup import configure
from sglang_fl.tune.aten_decide import KERNEL, PYTORCH
from sglang_fl.tune.decide import RIGHT
from sglang_fl.tune.timing import NoGraphError, Side, in_turn, sets_for, side_of
from sglang_fl.vendor import AtenKernel

__all__ = ["AtenBench", "serve"]

#: ``(args, kwargs)``
Call = tuple[tuple[Any, ...], dict[str, Any]]


def serve() -> None:
    """Answer until the input ends; the first line says that the kernels are there.

    Raises
    ------
    Exception : whatever importing the kernel library raises
    """
    answers = own_output()

    def tell(said: Any) -> None:
        answers.write(f"{json.dumps(said)}\n")
        answers.flush()

    vendor = configure().registry.vendor
    bench = AtenBench(load_kernels(vendor), vendor.device_type)
    tell({})
    for line in sys.stdin:
        tell(bench.do(**json.loads(line)))


class AtenBench:
    """Judges and times kernels beside PyTorch's own.

    Parameters
    ----------
    kernels : the vendor's; none of them is registered
    device_type : PyTorch's string for the device whose tensors they are for
    """

    def __init__(self, kernels: Sequence[AtenKernel], device_type: str) -> None:
        self._kernels = {kernel.exact: kernel for kernel in kernels}
        self._switchboard = AtenSwitchboard(kernels, device_type)
        self._device = torch.device(device_type)
        self._draw = random.Random(7)

    @torch.inference_mode()
    def do(self, op: str, file: str, graphs: bool | None = None) -> dict[str, Any]:
        """Judge a kernel at one call, or time it beside PyTorch's own.

        Parameters
        ----------
        op : its exact name: ``aten::mul.Tensor``
        file : the call
        graphs : None judges; else whether times are taken in CUDA graphs

        Returns
        -------
        dict : ``state`` and ``text``, or ``how``, ``times`` and ``trouble``; and whether the process
            ``is_spoiled``, so that nothing that it says later can be trusted
        """
        call = Path(file)
        found = self._judged(op, call) if graphs is None else self._timed(op, call, graphs)
        return {"is_spoiled": not self._is_usable(), **found}

    def _is_usable(self) -> bool:
        """Whether the device still computes: a kernel that reads what is not its own ends that."""
        try:
            return torch.ones(2, device=self._device).sum().item() == 2
        except Exception:  # noqa: BLE001 - whatever it says
            return False

    def _judged(self, op: str, file: Path) -> dict[str, str]:
        if op not in self._kernels:
            return {"state": "not judged", "text": "the library has no kernel of this name here"}
        call = load_call(file)
        try:
            unjudged = why_not_judged(op, call)
            if unjudged:
                return {"state": "not judged", "text": unjudged}
            fault = next(compare(self._kernels[op], call), None)
            wait_for(self._device)
        except FarRowsError as error:
            return {"state": RIGHT, "text": str(error)}
        except (RuntimeError, MemoryError) as error:
            state = "not judged" if is_out_of_memory(error) else "raised"
            return {"state": state, "text": f"{type(error).__name__}: {error}"}
        return {"state": "wrong", "text": str(fault)} if fault else {"state": RIGHT, "text": ""}

    def _timed(self, op: str, file: Path, graphs: bool) -> dict[str, Any]:
        turns = {PYTORCH: self._switchboard.switch_off, KERNEL: self._switch_on}
        try:
            sides = {name: self._side(op, file, graphs, turn) for name, turn in turns.items()}
            how, times = in_turn(sides, self._device, graphs, self._draw)
        except NoGraphError as error:
            return {"how": "", "times": {}, "trouble": str(error), "is_spoiled": True}
        finally:
            self._switchboard.switch_off([op])
        return {"how": how, "times": times, "trouble": ""}

    def _switch_on(self, names: list[str]) -> None:
        refused = self._switchboard.switch_on(names)
        if refused:  # the times would be PyTorch's own
            raise RuntimeError("; ".join(refused.values()))

    def _side(self, op: str, file: Path, graphs: bool, turn: Callable[[list[str]], None]) -> Side:
        """Return calls by PyTorch's dispatcher, the kernel registered or not: that is what a model pays."""
        own, first = overload_of(op), load_call(file)
        size = sum(leaf.nbytes for leaf in tree.tree_leaves(first) if isinstance(leaf, Tensor))
        sets = [first, *(load_call(file) for _ in range(sets_for(size, self._device) - 1))]
        calls = [functools.partial(own, *args, **kwargs) for args, kwargs in sets]
        written = [tensor for call in sets for tensor in _written(own, call)]
        return side_of(calls, written, self._device, graphs, functools.partial(turn, [op]))


def _written(own: torch._ops.OpOverload, call: Call) -> list[Tensor]:
    """Return the tensors that a call writes, by its op's schema."""
    args, kwargs = call
    declared = own._schema.arguments
    given: Mapping[str, Any] = dict(zip((a.name for a in declared), args, strict=False)) | kwargs
    names = [a.name for a in declared if a.alias_info is not None and a.alias_info.is_write]
    leaves = tree.tree_leaves([given[name] for name in names if name in given])
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]
