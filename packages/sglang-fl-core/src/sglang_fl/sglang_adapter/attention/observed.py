"""Calls of ``RadixAttention``, whichever of SGLang's attention backends runs them: told, and checked.

Every backend is reached through this one layer, with queries, keys, values and the batch at hand. Nothing is
put in its place: what SGLang computes is served.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sglang_fl.dispatch.op_check import Given, OpCheck, Violation, violations
from sglang_fl.logs.dispatch_log import DispatchLog
from sglang_fl.sglang_adapter.attention import offer
from sglang_fl.sglang_adapter.attention.limits import layers_of
from sglang_fl.sglang_adapter.attention.sample import Call, Pools, Sample, take
from sglang_fl.sglang_adapter.telling import StandIn

__all__ = ["LAYER", "RESULT", "backend_of", "check_calls", "tell_of_backend"]

#: The layer class, for logs.
LAYER = "RadixAttention"
#: In the call of a reported violation, what the backend returned: a script cannot ask the backend again.
RESULT = "result"


def backend_of(runner: Any, is_decode: bool) -> str:
    """Return the name of the attention backend that runs decode steps, or everything else."""
    backend = runner.attn_backend
    name = getattr(backend, f"{'decode' if is_decode else 'prefill'}_attention_backend_str", None)
    return name or type(backend).__name__


def tell_of_backend(runner: Any, log: DispatchLog) -> None:
    """Have the log told which backend runs attention, once it has run.

    Ours is not told of: its kernels are.

    Parameters
    ----------
    runner : SGLang's ``ModelRunner``, whose attention backend is being built
    log : the dispatch log
    """
    for layer in layers_of(runner)[:1]:  # one backend runs all of them
        if not isinstance(vars(layer).get("forward"), _Told):
            _Told(layer, runner, log).put()


def check_calls(runner: Any, check: OpCheck, name_of: Callable[[Any, str], str]) -> list[StandIn]:
    """Hold calls of a runner's attention layers against float64.

    Parameters
    ----------
    runner : SGLang's ``ModelRunner``
    check : says which calls, and reports
    name_of : what a report calls a layer that a backend has run

    Returns
    -------
    list of StandIn : which ``leave`` when the check is over
    """
    placed = [
        _Checked(layer, runner, check, name_of)
        for layer in layers_of(runner)
        if not isinstance(vars(layer).get("forward"), _Checked)
    ]
    for stand_in in placed:
        stand_in.put()
    return list(placed)


class _Told(StandIn):
    """Stands in until both backends, that of decode steps and that of the rest, are told of."""

    def __init__(self, layer: Any, runner: Any, log: DispatchLog) -> None:
        super().__init__(layer, "forward", layer.forward)
        self._runner = runner
        self._log = log
        self._untold = {True, False}

    def __call__(self, q: Any, k: Any, v: Any, forward_batch: Any, *args: Any, **kwargs: Any) -> Any:
        result = self.own(q, k, v, forward_batch, *args, **kwargs)
        # A draft model may have backends that are not its runner's: of these nothing is told.
        is_known = self._runner is not None and self._runner.attn_backend is not None
        if not torch.compiler.is_compiling() and is_known and self.is_there and len(q):
            self._tell(forward_batch.forward_mode.is_decode())
        return result

    def _tell(self, is_decode: bool) -> None:
        names = {mode: backend_of(self._runner, mode) for mode in (True, False)}
        if names[is_decode] != offer.NAME:
            self._log.write(LAYER, f"sglang({names[is_decode]})")
        self._untold -= {mode for mode, name in names.items() if name == names[is_decode]}
        if not self._untold:
            self.leave()


class _Checked(StandIn):
    """Stands in for as long as calls are checked."""

    def __init__(self, layer: Any, runner: Any, check: OpCheck, name_of: Callable[[Any, str], str]) -> None:
        super().__init__(layer, "forward", layer.forward)
        self._layer = layer
        self._runner = runner
        self._check = check
        self._name_of = name_of
        self._calls = 0

    def __call__(
        self,
        q: Tensor,
        k: Tensor | None,
        v: Tensor | None,
        forward_batch: Any,
        save_kv_cache: bool = True,
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        def run() -> Any:
            return self.own(q, k, v, forward_batch, save_kv_cache, *args, **kwargs)

        if torch.compiler.is_compiling():
            return run()
        self._calls += 1
        if not self._check.is_due(self._calls):
            return run()
        call = Call(self._layer, q, k, v, forward_batch, save_kv_cache, kwargs)
        turn = (self._calls - 1) // self._check.every
        backend = backend_of(self._runner, forward_batch.forward_mode.is_decode())
        pools = Pools(self._runner, is_read_exactly=backend == offer.NAME)
        sample = self._check.attempt(LAYER, lambda: take(call, pools, turn))
        result = run()
        if sample is not None:
            self._check.attempt(LAYER, lambda: self._judge(sample.after_call(), result, pools, backend))
        return result

    def _judge(self, sample: Sample, result: Any, pools: Pools, backend: str) -> None:
        name = self._name_of(self._layer, backend)
        found = sample.of(result, self._layer)
        if self._check.look is not None:
            self._check.look(sample.op, name, sample.arguments, found)
        wrong = _wrong(sample, name, sample.arguments, found)
        if wrong and sample.without_first_key is not None:
            wrong = wrong if _wrong(sample, name, sample.without_first_key, found) else []
        missing = sample.written.missing(pools.buffers(self._layer)) if sample.written else None
        if missing is not None:
            wrong.append(_not_written(sample, name, missing))
        for violation in wrong:
            self._check.report(replace(violation, call={**violation.call, RESULT: found}))


def _wrong(sample: Sample, name: str, arguments: dict[str, Any], found: Tensor) -> list[Violation]:
    return violations(sample.op, name, Given(sample.op, arguments), found, arguments)


def _not_written(sample: Sample, name: str, what: str) -> Violation:
    return Violation(
        sample.op.name,
        name,
        what,
        error=torch.inf,
        reference_error=0.0,
        allowed=0.0,
        dtype=str(sample.arguments["k_buffer"].dtype).removeprefix("torch."),
        shapes={name: tuple(x.shape) for name, x in sample.arguments.items() if isinstance(x, Tensor)},
        call=sample.arguments,
    )
