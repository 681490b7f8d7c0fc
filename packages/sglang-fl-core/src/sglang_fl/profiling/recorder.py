"""What ``sglang-fl profile`` asks of a process that runs the model: to mark what runs, and to trace it.

It arrives through ``Engine.collective_rpc``; each rank answers in a file, and writes its trace into one.
"""

import json
import logging
from pathlib import Path
from typing import Any

import torch

from sglang_fl.profiling.ranges import LayerRanges, step_range
from sglang_fl.sglang_adapter.attention.observed import backend_of
from sglang_fl.sglang_adapter.telling import StandIn

__all__ = ["METHOD", "Recorder"]

logger = logging.getLogger(__name__)

#: The name of the scheduler's attribute that ``collective_rpc`` calls.
METHOD = "sglang_fl_profile"


class Recorder:
    """The profiler of one rank.

    Parameters
    ----------
    folder : for answers and traces
    device_type : PyTorch's string
    """

    def __init__(self, folder: Path, device_type: str) -> None:
        self._folder = folder
        self._device_type = device_type
        self._layers = LayerRanges(self._attention_backend)
        self._steps: _Steps
        self._profiler: Any = None

    def attach(self, scheduler: Any) -> None:
        """Let ``collective_rpc`` reach this recorder in the scheduler, and see each batch."""
        self._runner = scheduler.tp_worker.model_runner
        self._steps = _Steps(scheduler)
        setattr(scheduler, METHOD, self.do)

    def do(self, step: str) -> None:
        """Carry out one step: ``start`` or ``stop``; the answer says how it went."""
        error = ""
        try:
            {"start": self._start, "stop": self._stop}[step]()
        except Exception as raised:
            logger.exception("%s failed", step)
            error = f"{type(raised).__name__}: {raised}"
        self._answer("step", {"step": step, "error": error})

    def _start(self) -> None:
        self._steps.put()
        self._layers.switch_on()
        supported: Any = torch.profiler.supported_activities  # PyTorch has no types for it
        self._profiler = torch.profiler.profile(activities=supported())
        self._profiler.start()

    def _stop(self) -> None:
        self._profiler.stop()
        self._layers.switch_off()
        self._steps.leave()
        self._profiler.export_chrome_trace(str(self._folder / f"trace.rank{_rank()}.json"))
        self._profiler = None
        self._answer("device", {"device": self._device(), "device_type": self._device_type})

    def _device(self) -> str:
        module = getattr(torch, self._device_type, None)
        name = getattr(module, "get_device_name", None)
        return str(name()) if name is not None else self._device_type

    def _attention_backend(self) -> str:
        return backend_of(self._runner, self._steps.is_decode)

    def _answer(self, name: str, answer: Any) -> None:
        (self._folder / f"{name}.rank{_rank()}.json").write_text(json.dumps(answer, default=str))


class _Steps(StandIn):
    """Stands in for the scheduler's ``run_batch``, and puts a range around each batch."""

    def __init__(self, scheduler: Any) -> None:
        super().__init__(scheduler, "run_batch", scheduler.run_batch)
        self.is_decode = False

    def __call__(self, batch: Any, *args: Any, **kwargs: Any) -> Any:
        self.is_decode = batch.forward_mode.is_decode()
        with step_range(batch):
            return self.own(batch, *args, **kwargs)


def _rank() -> int:
    return torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
