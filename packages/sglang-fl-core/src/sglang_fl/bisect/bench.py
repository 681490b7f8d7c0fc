"""What ``sglang-fl bisect`` asks of a process that runs the model.

It arrives through ``Engine.collective_rpc``, which every rank carries out and which returns no more than
success: answers go into a folder, one file for each rank.
"""

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as tree

from sglang_fl.aten import load_kernels, plan_layer_1
from sglang_fl.aten.call_check import AtenFault, CallBook
from sglang_fl.aten.switchboard import AtenSwitchboard
from sglang_fl.dispatch.kept_calls import KeptCalls
from sglang_fl.dispatch.op_check import OpCheck, Violation
from sglang_fl.dispatch.resolution import reference_alone
from sglang_fl.errors import SettingsError
from sglang_fl.logs.dispatch_log import DispatchLog
from sglang_fl.ops import Kernel, Op
from sglang_fl.settings import prepare_environment
from sglang_fl.sglang_adapter import seams
from sglang_fl.sglang_adapter.layer_lists import layer_lists
from sglang_fl.sglang_adapter.switchable_layers import SwitchableLayers
from sglang_fl.startup import Configuration
from sglang_fl.vendor import AtenKernel, OpImpl

__all__ = ["CALLS", "METHOD", "Bench", "install_bench"]

logger = logging.getLogger(__name__)

#: The folder of kept calls, in that of the report.
CALLS = "calls"
#: The name of the scheduler's attribute that ``collective_rpc`` calls.
METHOD = "sglang_fl_bisect"


class Bench:
    """The switches of one rank.

    Parameters
    ----------
    folder : for answers
    layers : of layer 2, armed by the first request
    check : the checks around the kernels of ``layers``
    kernels : imports the kernels of layer 1 that are to be replaced
    device_type : PyTorch's string
    """

    def __init__(
        self,
        folder: Path,
        layers: SwitchableLayers,
        check: OpCheck,
        kernels: Callable[[], tuple[AtenKernel, ...]],
        device_type: str,
    ) -> None:
        self._folder = folder
        self._layers = layers
        self._check = check
        self._load = kernels
        self._device_type = device_type
        self._book = CallBook()
        self._within: list[torch.nn.Module] = []
        self._hooks: list[Any] = []
        self._kernels: tuple[AtenKernel, ...] = ()
        self._plain: AtenSwitchboard
        self._keeping: AtenSwitchboard
        self._violations: dict[str, Violation] = {}
        self._of_attention: list[Violation] = []
        self._attention = OpCheck(self._note_attention)
        self._stand_ins: list[Any] = []
        check.is_on = False
        check.report = self._note

    def attach(self, scheduler: Any) -> None:
        """Let ``collective_rpc`` reach this bench in the scheduler."""
        self._runner = scheduler.tp_worker.model_runner
        setattr(scheduler, METHOD, self.do)

    def do(self, step: str, **parameters: Any) -> None:
        """Carry out one step; the names of steps are the methods below.

        SGLang tells its caller of rank 0 alone, so each rank answers for itself how it went.
        """
        error = ""
        try:
            getattr(self, f"_{step}")(**parameters)
        except Exception as raised:
            logger.exception("%s failed", step)
            error = f"{type(raised).__name__}: {raised}"
        self._answer("step", {"step": step, "error": error})

    def _note(self, found: Violation) -> None:
        """Keep the first violation of each op, off the device."""
        if found.op not in self._violations:
            self._violations[found.op] = replace(found, call=_on_cpu(found.call))

    def _note_attention(self, found: Violation) -> None:
        """Keep the first violation of attention, off the device."""
        if not self._of_attention:
            self._of_attention.append(replace(found, call=_on_cpu(found.call)))

    def _watch_attention(self) -> None:
        """Check each call of SGLang's attention layer, whichever backend runs it."""
        from sglang_fl.sglang_adapter.attention.observed import check_calls

        names = {id(layer): name for name, layer in self._runner.model.named_modules()}
        self._stand_ins = check_calls(self._runner, self._attention, lambda layer, _: names[id(layer)])

    def _tell_attention(self) -> None:
        """End that and answer the first finding."""
        from sglang_fl.sglang_adapter.attention.observed import backend_of

        for stand_in in self._stand_ins:
            stand_in.leave()
        said = [
            {**self._saved(found), "backend": backend_of(self._runner, found.op == "decode_attention")}
            for found in self._of_attention
        ]
        self._answer("attention", {"violations": said, "unchecked": self._attention.unchecked})

    def _arm(self) -> None:
        self._book = CallBook(self._where)
        self._layers.find(self._runner.model, self._runner.attn_backend)
        self._kernels = self._load()
        self._plain = AtenSwitchboard(self._kernels, self._device_type)
        self._keeping = AtenSwitchboard(tuple(map(self._book.keeping, self._kernels)), self._device_type)
        refused = self._plain.switch_on(kernel.exact for kernel in self._kernels)
        self._answer(
            "units",
            {"layer_2": self._layers.ops, "layer_1": list(self._plain.is_on), "refused": refused},
        )
        self._aten(self._plain, [])

    def _switch(self, layer_2: list[str], layer_1: list[str], layers: list[str] | None = None) -> None:
        self._layers.switch(layer_2, layers)
        self._aten(self._plain, layer_1)

    def _aten(self, board: AtenSwitchboard, wanted: list[str]) -> None:
        for other in (self._plain, self._keeping):
            other.switch_off(op for op in map(_exact, other.is_on))
        board.switch_on(map(_exact, wanted))

    def _use_references(self) -> None:
        self._switch([], [])
        self._layers.use_references(_rounded_otherwise)

    def _plant(self) -> None:
        self._answer("planted", self._layers.plant(_spoiled))

    def _watch(self, layer_2: list[str], layer_1: list[str]) -> None:
        """Switch these on, and check or keep each of their calls."""
        self._violations.clear()
        self._check.is_on = True
        self._follow_layers()
        self._layers.switch(layer_2)
        self._aten(self._keeping, layer_1)

    def _follow_layers(self) -> None:
        """Know from now on which layer runs."""

        def enter(layer: torch.nn.Module, given: Any) -> None:
            self._within.append(layer)

        def leave(layer: torch.nn.Module, given: Any, results: Any) -> None:
            self._within.pop()

        modules = torch.nn.modules.module
        self._hooks = [
            modules.register_module_forward_pre_hook(enter),
            modules.register_module_forward_hook(leave, always_call=True),
        ]

    def _where(self) -> str:
        return self._layers.name_of(self._within[-1]) if self._within else "outside of the model"

    def _findings(self, layer_1: list[str]) -> None:
        """End the watch and answer the first finding of each op; its inputs go into a file."""
        self._check.is_on = False
        self._switch([], [])
        for hook in self._hooks:
            hook.remove()
        self._within.clear()
        wanted = [kernel for kernel in self._kernels if kernel.overload in layer_1]
        found = (next(self._book.faults(kernel), None) for kernel in wanted)
        faults = [fault for fault in found if fault is not None]
        self._answer(
            "findings",
            {
                "implementations": self._layers.implementations(),
                "violations": [self._saved(v) for v in self._violations.values()],
                "faults": [self._saved(f) for f in faults],
                "called": list(self._book.called),
                "unchecked": {**self._check.unchecked, **self._book.unjudged},
            },
        )

    def _saved(self, found: Violation | AtenFault) -> dict[str, Any]:
        name = f"violation-{found.op}" if isinstance(found, Violation) else f"fault-{found.overload}"
        path = self._folder / f"{name}.rank{_rank()}.pt"
        said = {name: value for name, value in vars(found).items() if name != "call"}
        try:
            torch.save(_on_cpu(found.call), path)
        except Exception as error:  # noqa: BLE001 - a finding counts without its inputs
            logger.warning("the inputs of %s cannot be kept: %s", found, error)
            return {**said, "text": str(found), "inputs": ""}
        return {**said, "text": str(found), "inputs": path.name}

    def _answer(self, name: str, answer: Any) -> None:
        path = self._folder / f"{name}.rank{_rank()}.json"
        # Not redacted: the other end compares names. It shows what it prints, and removes these files.
        path.write_text(json.dumps(answer, default=str))


def install_bench(configuration: Configuration, folder: Path, check: Callable[..., None]) -> None:
    """Hook nothing but the moment at which a scheduler can be given its bench.

    Parameters
    ----------
    configuration : what a start would do
    folder : for answers
    check : see ``sglang_adapter.scheduler.install``

    Raises
    ------
    SettingsError : this SGLang is not supported
    """
    from sglang_fl.sglang_adapter import scheduler

    version = seams.installed_version()
    seam = seams.seam_of(version)
    if seam is None:
        raise SettingsError(seams.why_unsupported(version))
    vendor = configuration.registry.vendor
    prepare_environment(vendor)
    calls = OpCheck(report=lambda violation: None)
    layers = _armed(configuration, seam, calls, KeptCalls(folder / CALLS))
    bench = Bench(folder, layers, calls, _kernels(configuration), vendor.device_type)
    scheduler.install(bench.attach, lambda: None, check)


def _armed(
    configuration: Configuration, seam: seams.Seam, calls: OpCheck, kept: KeptCalls
) -> SwitchableLayers:
    from sglang_fl.sglang_adapter.hook import LayerHook

    def wrap(op: Op, impl: OpImpl, layer: Any, kernel: Kernel) -> Kernel:
        kernel = kept.wrap(op, impl, layer, kernel)  # one that ends the engine leaves its call behind
        return calls.checking(op, lambda: layers.name_of(layer), kernel)

    log, lists = DispatchLog(None), layer_lists(configuration.settings)
    references = {name: reference_alone(resolution) for name, resolution in configuration.resolutions.items()}
    if not configuration.settings.oot_enabled:
        return SwitchableLayers(None, None, seam)
    ours = LayerHook(configuration.resolutions, log, lists, wrap)
    layers = SwitchableLayers(ours, LayerHook(references, log, lists), seam)
    return layers


def _kernels(configuration: Configuration) -> Callable[[], tuple[AtenKernel, ...]]:
    """Return what imports the kernels that layer 1 would register."""
    plan = plan_layer_1(configuration)
    wanted = {op.overload for op in plan.replaced} if plan else set()

    def load() -> tuple[AtenKernel, ...]:
        vendor = configuration.registry.vendor
        return tuple(k for k in load_kernels(vendor) if k.overload in wanted) if wanted else ()

    return load


def _exact(overload: str) -> str:
    return f"aten::{overload}" if "." in overload else f"aten::{overload}.default"


def _rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0


def _spoiled(result: Any) -> Any:
    """Return the first half of the first result a tenth too large: as a whole, a norm would mend it."""
    first, *others = (result,) if isinstance(result, Tensor) else result
    wrong = first.clone()
    wrong[..., : first.shape[-1] // 2] *= 1.1
    return (wrong, *others) if others else wrong


def _rounded_otherwise(result: Any) -> Any:
    """Return results with each element up to one unit of its dtype's rounding away.

    So far other right kernels may be. Two that round alike but for one element in a million would else pass
    for equal, and a third for wrong.
    """
    return tree.tree_map(_nudged, result)


def _nudged(x: Any) -> Any:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return x
    # On the CPU, so that it is the same on every chip.
    chance = torch.rand(x.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    factor = 1 + torch.finfo(x.dtype).eps * (2 * chance - 1)
    return (x.double().cpu() * factor).to(x.dtype).to(x.device)


def _on_cpu(call: Any) -> Any:
    plain = dict(call) if not isinstance(call, tuple) else call
    return tree.tree_map(lambda x: x.to("cpu", copy=True) if isinstance(x, Tensor) else x, plain)
