"""The life of a layer, from its first call to its last: ``undecided -> ours(kernel) | sglangs(reason)``.

In this order. Undecided, each call of the layer (``LayerLife``):

1. In the first call, when the layer is complete on every release of SGLang, its plan is made (``plan``). A
   layer that the plan leaves to SGLang is SGLang's from now on; the log says so.
2. The candidates are tried in order (``trial``). One that cannot be loaded, or that fails, is replaced by
   the next one for good, and each different cause is logged once. One that lacks an option of the layer is
   passed over. One that refuses the call (``UnsupportedError``) is passed over in this call.
3. A call that the contract excludes (``ContractError``), that every candidate refuses, or that the adapter
   leaves to SGLang, is SGLang's. It decides nothing. After eight such calls and no other the layer is
   SGLang's for good.
4. A call without rows, such as an idle rank sends under data-parallel attention, runs and decides nothing:
   a kernel that launches nothing for no rows has shown nothing.
5. A call that a kernel has computed decides: the adapter is bound to the kernel itself, SGLang gets that as
   a bound method of the layer, and the log says what ran. A copy of the layer (``copy.deepcopy``) has a
   method bound to the copy; ``pickle`` finds SGLang's own method by its name, as without the plugin.
6. Where no candidate is left, the call is an error; or, where SGLang's own kernel is the last resort, the
   layer is SGLang's for good.

Ours, each call: SGLang calls the adapter's function, which calls the kernel. Nothing of this module runs,
but where the kernel refuses the call or the adapter leaves it to SGLang: then it is SGLang's
(``_OwnForward``), and the log says so once for each reason. What else a kernel raises now is raised.

Memory that runs out is raised in every state: it is no fault of the kernel that asked for it last. An
adapter that raises before its kernel has run does not understand this layer: the layer is SGLang's, with
one warning; strict raises. No exception, traceback or argument is kept beyond its call (``faults``).
"""

import copy
import functools
import logging
import re
from collections.abc import Callable, Iterator
from types import MethodType
from typing import Any
from weakref import WeakSet

from sglang_fl.dispatch.faults import Fault, is_first, is_out_of_memory
from sglang_fl.dispatch.loading import load_kernel
from sglang_fl.dispatch.own_path import OwnPath
from sglang_fl.dispatch.plan import Forward, LayerPlan, Translation
from sglang_fl.dispatch.resolution import Resolution
from sglang_fl.dispatch.trial import NextCandidateError, Trial
from sglang_fl.errors import NoImplementationError, UnsupportedError
from sglang_fl.logs.counters import FALLBACKS, LAYERS, LEFT, count
from sglang_fl.logs.dispatch_log import DispatchLog
from sglang_fl.ops import Kernel, Op
from sglang_fl.vendor import OpImpl

__all__ = ["MOST_EXCLUDED", "NATIVE", "LayerLife", "Wrap", "is_ours"]

#: ``wrap(op, impl, layer, kernel)`` returns what is bound to a layer instead of the implementation's kernel,
#: with its signature.
Wrap = Callable[[Op, OpImpl, Any, Kernel], Kernel]

#: After so many calls that were all SGLang's the layer is SGLang's.
MOST_EXCLUDED = 8
#: How the dispatch log calls SGLang's own path.
NATIVE = "sglang(native)"

logger = logging.getLogger(__name__)

#: The adapters' functions that layers were given.
_bound: WeakSet[Forward] = WeakSet()


def is_ours(forward: Any) -> bool:
    """Whether this callable, as a layer holds it, is what this module has put there."""
    return isinstance(forward, LayerLife) or getattr(forward, "__func__", None) in _bound


class _OwnForward:
    """SGLang's own forward of a layer, for the calls that are not ours. See ``plan.Own``."""

    def __init__(
        self, own: Forward, layer: Any, layer_class: str, method: str, log: DispatchLog, title: str
    ) -> None:
        self.path = OwnPath.of(method)
        self.method = method
        self.was_called = False
        self._reason = ""  # of the call that comes next
        self._own = own
        self._layer = layer
        self._layer_class = layer_class
        self._log = log
        self._title = title
        is_plain = isinstance(own, MethodType) and own.__self__ is layer
        #: SGLang's function, which serves copies of the layer as well.
        self._function: Forward | None = own.__func__ if is_plain else None  # type: ignore[attr-defined]

    def __call__(self, layer: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.was_called = True
        count(LEFT, layer_class=self._layer_class, reason=self._reason)
        self._reason = ""
        result = self._of(layer)(*args, **kwargs)
        self._log.write(self._layer_class, self._title)
        return result

    def _of(self, layer: Any) -> Forward:
        if layer is self._layer:
            return self._own
        if self._function is not None:
            return functools.partial(self._function, layer)
        # What another plugin has made of it, with the copy in the layer's place.
        return copy.deepcopy(self._own, {id(self._layer): layer})

    def because(self, refusal: Exception) -> None:
        self.say(str(refusal))

    def say(self, reason: str) -> None:
        # Shapes and counts differ from call to call; the reason is the same.
        self._reason = re.sub(r"\d+", "#", reason)
        if is_first(self._layer_class, "left to SGLang", self._reason):
            logger.info("%s: a call is left to SGLang: %s", self._layer_class, reason)


#: A candidate did not run the call.
_NEXT = object()


class _MisfitError(Exception):
    """An adapter does not understand a layer."""


class _Candidates:
    """The candidates of a layer that are not rejected yet, and why the others are.

    Parameters
    ----------
    resolution : the candidates
    layer_class : for messages
    """

    def __init__(self, resolution: Resolution, layer_class: str) -> None:
        self.op = resolution.op
        self.strict = resolution.strict
        self._left = list(resolution.candidates)
        self._layer_class = layer_class
        self._reasons: list[str] = []

    def __iter__(self) -> Iterator[tuple[OpImpl, Kernel]]:
        """Yield each with its kernel, and reject those that cannot be loaded."""
        for impl in tuple(self._left):
            kernel = load_kernel(self.op, impl, self.strict)
            if isinstance(kernel, Fault):
                self.reject(impl, kernel)
            else:
                yield impl, kernel

    def reject(self, impl: OpImpl, fault: Fault) -> None:
        """Go on without a candidate that failed, for good."""
        self._drop(impl, str(fault))
        count(FALLBACKS, op=impl.op, implementation=impl.id)
        if is_first(self._layer_class, impl.id, str(fault)):
            logger.warning(
                "%s: %s of %s failed in its first call and is replaced: %s",
                *(self._layer_class, impl, impl.op, fault),
            )
            logger.debug("where it failed:\n%s", fault.where)

    def pass_over(self, impl: OpImpl, lack: str) -> None:
        """Go on without a candidate that says by its signature that it cannot run this layer, for good."""
        self._drop(impl, lack)
        if is_first(self._layer_class, impl.id, lack):
            logger.info("%s: %s of %s cannot run this layer: %s", self._layer_class, impl, impl.op, lack)

    def say_refused(self, impl: OpImpl, reason: str) -> None:
        """Say that a candidate has refused a call; it is asked again in the next one."""
        if is_first(self._layer_class, impl.id, re.sub(r"\d+", "#", reason)):
            logger.warning(
                "%s: %s of %s refused a first call, and the next one is tried: UnsupportedError: %s",
                *(self._layer_class, impl, impl.op, reason),
            )

    def _drop(self, impl: OpImpl, reason: str) -> None:
        self._left.remove(impl)
        self._reasons.append(f"{impl}: {reason}")

    def none_left(self) -> NoImplementationError:
        """Return the error that says why none could run the layer."""
        return NoImplementationError(
            f"{self._layer_class}: no implementation of {self.op} can run it: "
            f"{'; '.join(self._reasons) or 'there is none for this chip'}"
        )


class LayerLife:
    """A layer's forward until it is decided what runs it; see the module.

    Parameters
    ----------
    plan_of : ``plan_of(layer, own)``, asked once, in the first call, when the layer is complete
    layer : the layer, or the object whose method this stands for
    layer_class : for the dispatch log
    own : SGLang's own forward of the layer
    commit : called once, ``commit(layer, life, forward)``, to put the forward found in this object's place
    log : written after success, never before
    wrap : see ``Wrap``; None binds the kernel itself
    own_title : how the log calls ``own``: another name where an object of ours has none of SGLang's
    """

    def __init__(
        self,
        plan_of: Callable[[Any, Forward], LayerPlan],
        layer: Any,
        layer_class: str,
        own: Forward,
        commit: Callable[[Any, Forward, Forward], None],
        log: DispatchLog,
        wrap: Wrap | None = None,
        own_title: str = NATIVE,
    ) -> None:
        self._plan_of = plan_of
        self._layer = layer
        self._layer_class = layer_class
        self._own = own
        self._commit = commit
        self._log = log
        self._wrap = wrap
        self._own_title = own_title
        self._excluded = 0
        self._forward: Forward | None = None
        self._ran: OpImpl | None = None
        self.__name__ = getattr(own, "__name__", layer_class)  # SGLang's trace labels a call by it

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the layer.

        Raises
        ------
        NoImplementationError : every candidate has failed, and the layer is not to be left to SGLang
        Exception : memory ran out; or what a kernel or the adapter raised, if the resolution is strict
        """
        if self._forward is not None:  # whoever keeps this object pays one comparison
            return self._forward(*args, **kwargs)
        plan = self.plan
        if plan.adapter is None:
            # SGLang has no path for what an object of ours computes: whoever asked for that path is told.
            is_warned = plan.is_fault or (plan.is_asked and self._own_title != NATIVE)
            level = logging.WARNING if is_warned else logging.DEBUG
            return self._give_back(plan.reason or "", level, args, kwargs)
        return self._undecided(plan.adapter, args, kwargs)

    @functools.cached_property
    def plan(self) -> LayerPlan:
        """What becomes of the layer, which must be complete."""
        return self._plan_of(self._layer, self._own)

    @property
    def op(self) -> Op | None:
        """The op that the layer computes; None where it is SGLang's. The layer must be complete."""
        return self.plan.adapter.op if self.plan.adapter else None

    @property
    def ran(self) -> OpImpl | None:
        """The implementation that runs the layer, once that is decided."""
        return self._ran

    @functools.cached_property
    def _candidates(self) -> _Candidates:
        assert self.plan.resolution is not None
        return _Candidates(self.plan.resolution, self._layer_class)

    @functools.cached_property
    def _own_forward(self) -> _OwnForward:
        facts = (self._own, self._layer, self._layer_class, self.plan.method)
        return _OwnForward(*facts, self._log, self._own_title)

    def _undecided(self, adapter: Translation, args: Any, kwargs: Any) -> Any:
        """Run a call with one candidate after the other until one has computed it, or SGLang has."""
        candidates, refusal, misfit = self._candidates, "", ""
        for impl, kernel in candidates:
            trial = Trial(candidates.op, kernel, candidates.strict)
            self._own_forward.was_called = False
            try:
                result = self._try(adapter, impl, trial, args, kwargs)
            except _MisfitError as error:
                misfit = str(error)
                break
            if result is _NEXT:
                refusal = refusal or trial.refusal
            elif trial.has_run:
                return self._computed(adapter, impl, trial, result)
            elif self._own_forward.was_called:
                return self._count_excluded(result)
            else:  # SGLang's code around the kernel had no need of it, as a router has none for no tokens
                return result
        if misfit:
            return self._give_back(misfit, logging.WARNING, args, kwargs)
        if refusal:
            self._own_forward.say(refusal)
            return self._count_excluded(self._own_forward(self._layer, *args, **kwargs))
        if not self.plan.or_own:
            raise candidates.none_left()
        return self._give_back(str(candidates.none_left()), logging.DEBUG, args, kwargs)

    def _try(self, adapter: Translation, impl: OpImpl, trial: Trial, args: Any, kwargs: Any) -> Any:
        """Run a call with one candidate, or return ``_NEXT``; then trial and candidates know why.

        Raises
        ------
        _MisfitError : the adapter raised before the kernel or SGLang's own path was called
        Exception : what SGLang's own path raised; memory ran out; anything, if strict
        """
        try:
            return self._bound(adapter, impl, trial)(self._layer, *args, **kwargs)
        except NextCandidateError:
            if trial.fault is not None:
                self._candidates.reject(impl, trial.fault)
            else:
                self._candidates.say_refused(impl, trial.refusal)
        except UnsupportedError as lack:
            if trial.was_called:  # strict: the kernel's refusal of this call
                raise
            self._candidates.pass_over(impl, str(lack))
        except Exception as error:
            has_begun = trial.was_called or self._own_forward.was_called
            if has_begun or self._candidates.strict or is_out_of_memory(error):
                raise
            raise _MisfitError(f"its adapter raised {Fault.of(error)}") from error
        return _NEXT

    def _bound(self, adapter: Translation, impl: OpImpl, kernel: Kernel) -> Forward:
        """Return the adapter's function for this kernel."""
        if self._wrap is not None:
            kernel = self._wrap(adapter.op, impl, self._layer, kernel)
        return adapter.bind(self._layer, kernel, self._own_forward)

    def _computed(self, adapter: Translation, impl: OpImpl, trial: Trial, result: Any) -> Any:
        """Decide for the candidate that has computed a call, if there was anything to compute."""
        if trial.has_rows:
            forward = self._bound(adapter, impl, trial.kernel)
            # ``pickle`` keeps a bound method as its name: a copy from a file then has SGLang's own.
            forward.__name__ = self.plan.method
            _bound.add(forward)
            self._ran = impl
            self._decide(MethodType(forward, self._layer))
            count(LAYERS, layer_class=self._layer_class, ran=f"{impl.kind}({impl.id})")
            self._log.write(self._layer_class, f"{impl.kind}({impl.id})")
        return result

    def _count_excluded(self, result: Any) -> Any:
        """Give the layer back after so many calls that were all SGLang's."""
        self._excluded += 1
        if self._excluded == MOST_EXCLUDED:
            self._decide(self._own)
            if is_first(self._layer_class, "given back"):
                logger.info(
                    "%s: all of the first %d calls were SGLang's, and so are the later ones",
                    *(self._layer_class, MOST_EXCLUDED),
                )
        return result

    def _give_back(self, reason: str, level: int, args: Any, kwargs: Any) -> Any:
        """Leave the layer to SGLang for good."""
        self._decide(self._own)
        if is_first(self._layer_class, "given back", reason):
            left = (
                "left to SGLang" if self._own_title == NATIVE else f"SGLang has none, {self._own_title} runs"
            )
            logger.log(level, "%s: %s: %s", self._layer_class, left, reason)
        return self._own_forward(self._layer, *args, **kwargs)

    def _decide(self, forward: Forward) -> None:
        self._forward = forward
        self._commit(self._layer, self, forward)

    def __deepcopy__(self, memo: dict[int, Any]) -> "LayerLife":
        """Return an undecided one for the copy of the layer."""
        layer, own = copy.deepcopy(self._layer, memo), copy.deepcopy(self._own, memo)
        facts = (self._commit, self._log, self._wrap, self._own_title)
        return LayerLife(self._plan_of, layer, self._layer_class, own, *facts)

    def __reduce__(self) -> Any:
        """Pickle SGLang's own forward in the place of this object, as without the plugin."""
        return self._own.__reduce__()
