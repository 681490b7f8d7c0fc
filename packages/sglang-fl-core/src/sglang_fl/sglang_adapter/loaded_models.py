"""What becomes of SGLang's shortcuts and of pinned layers once a model is loaded, before it runs.

SGLang tells of that moment where it builds the attention backend: the model is complete, its modules are
imported, nothing has run and no graph is captured yet. So no module is imported for a hook, and a process
without a model, such as the HTTP server, has none of them.
"""

import functools
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any
from weakref import WeakSet

import torch
from packaging.version import Version
from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_fl.errors import SettingsError
from sglang_fl.logs.dispatch_log import DispatchLog
from sglang_fl.sglang_adapter.layers import ADAPTERS
from sglang_fl.sglang_adapter.layers.adapter import covering
from sglang_fl.sglang_adapter.shortcuts import DIRECT_CALLS, SHORTCUTS, Shortcut, Watch

__all__ = ["LoadedModels"]

logger = logging.getLogger(__name__)


class LoadedModels:
    """Turns shortcuts off or watches them, and tells of layers that SGLang has pinned.

    Parameters
    ----------
    named : the ops whose backend the user named, and how: ``{"rms_norm": "SGLANG_FL_PER_OP"}``
    log : the dispatch log
    version : of SGLang
    """

    def __init__(self, named: Mapping[str, str], log: DispatchLog, version: Version) -> None:
        self._named = named
        self._log = log
        self._version = version
        self._seen: WeakSet[Any] = WeakSet()
        self._is_installed = False
        self._said_silu_quant = False

    def settle(self, model: torch.nn.Module) -> None:
        """Do what is to be done for a model that has just been loaded; once for each.

        Raises
        ------
        SettingsError : the user named the backend of an op that this model computes past us, and there is
            no way to turn that off
        """
        if model in self._seen:
            return
        self._refuse(model)
        if not self._is_installed:
            self._is_installed = True
            self._install()
        self._seen.add(model)
        for layer in model.modules():
            self._tell_if_pinned(layer)
            self._tell_of_silu_quant(layer)

    def _refuse(self, model: torch.nn.Module) -> None:
        """Refuse a model whose code calls a method of a layer whose backend the user named."""
        classes = {f"{type(layer).__module__}:{type(layer).__qualname__}" for layer in model.modules()}
        for call in DIRECT_CALLS:
            if call.op in self._named and call.owner in classes and self._version in call.releases:
                raise SettingsError(
                    f"{self._named[call.op]} names {call.op}, but {call.owner.partition(':')[2]} of SGLang "
                    f"{self._version} calls {call.condition}, and nothing keeps it from that. Leave "
                    f"{call.op} out."
                )

    def _install(self) -> None:
        """Hook what turns the shortcuts past the user's ops off, and watch the others."""
        switches: dict[str, Callable[..., Any]] = {}
        watchers: dict[str, Callable[..., Any]] = {}
        off = set()
        for shortcut in (known for known in SHORTCUTS if self._version in known.releases):
            if shortcut.passes(self._named) and shortcut.switches:
                switches.update(self._switches(shortcut))
                off.add(shortcut.name)
            elif shortcut.watch and _current(shortcut.target) is not None:
                facts = (shortcut.target, shortcut.name)
                watchers[shortcut.target] = _Watcher(*facts, shortcut.watch, self._log)
        not_hooked = _hook(watchers | switches)
        for target in not_hooked & switches.keys():
            raise SettingsError(
                f"{_listed(self._named.values())} needs SGLang's {target} to be hooked, and it was not; "
                f"SGLang's log above says why"
            )
        if off:
            logger.info("%s: SGLang's %s never run", _listed(self._named.values()), _listed(off))

    def _switches(self, shortcut: Shortcut) -> Iterator[tuple[str, Callable[..., Any]]]:
        for switch in shortcut.switches:
            if self._version not in switch.releases or _owner(switch.target) is None:
                continue
            if _current(switch.target) is None:
                op = shortcut.passes(self._named)[0]
                raise SettingsError(
                    f"{self._named[op]} names {op}, but SGLang's {shortcut.name} cannot be turned off: "
                    f"{switch.target} is not there. Leave {op} out."
                )
            yield switch.target, switch.replacement

    def _tell_if_pinned(self, layer: torch.nn.Module) -> None:
        """Let the first call of a layer that SGLang pinned to one of its methods tell the log."""
        adapters = covering(type(layer), ADAPTERS)
        for name in ("_forward_method", "forward") if adapters else ():
            own = vars(layer).get(name)
            if own is not None and getattr(own, "__self__", None) is layer:
                setattr(layer, name, _telling_once(layer, name, own, self._log))
                for op in (adapter.op.name for adapter in adapters if adapter.op.name in self._named):
                    _warn_once(
                        f"{self._named[op]} names {op}, but SGLang has pinned {type(layer).__name__} layers "
                        f"to {own.__name__}"
                    )

    def _tell_of_silu_quant(self, layer: torch.nn.Module) -> None:
        """Say once that SGLang's fused SiLU and FP8 quantisation ends where SiluAndMul is ours."""
        fused = vars(layer).get("activation_quant")
        if getattr(fused, "enabled", False) and not self._said_silu_quant:
            self._said_silu_quant = True
            logger.info("SGLang's fused_silu_quant never runs where SiluAndMul is not left to SGLang")


class _Watcher:
    """Calls a function of SGLang; once that has passed over a layer, writes the log and takes itself away."""

    def __init__(self, target: str, name: str, watch: Watch, log: DispatchLog) -> None:
        self._target = target
        self._ran = f"sglang({name})"
        self._watch = watch
        self._log = log
        self._is_over = False

    def __call__(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._is_over or torch.compiler.is_compiling():
            return original(*args, **kwargs)
        result, passed = self._watch(original, *args, **kwargs)
        for layer in passed:
            self._log.write(layer if isinstance(layer, str) else type(layer).__name__, self._ran)
        if passed:
            self._is_over = True  # for whoever keeps the hooked function
            _unhook(self._target, original)
        return result


def _unhook(target: str, original: Callable[..., Any]) -> None:
    """Put a function back wherever SGLang has put its wrapper; not where others have hooked it too."""
    wrapper = _current(target)
    if getattr(wrapper, "__wrapped__", None) is not original:
        return
    for holder in (_owner(target), *sys.modules.values()):
        for key, value in list(getattr(holder, "__dict__", {}).items()):
            if value is wrapper:
                setattr(holder, key, original)


def _telling_once(
    layer: torch.nn.Module, name: str, own: Callable[..., Any], log: DispatchLog
) -> Callable[..., Any]:
    def first(*args: Any, **kwargs: Any) -> Any:
        result = own(*args, **kwargs)
        if vars(layer).get(name) is first and not torch.compiler.is_compiling():
            setattr(layer, name, own)
            log.write(type(layer).__name__, "sglang(pinned)")
        return result

    return first


def _hook(wanted: Mapping[str, Callable[..., Any]]) -> set[str]:
    """Hook functions through SGLang's registry; return those that it could not.

    It logs them and goes on. One that another plugin has hooked at its start is among them.
    """
    before = {target: _current(target) for target in wanted}
    for target, hook in wanted.items():
        HookRegistry.register(target, hook, HookType.AROUND)
    HookRegistry.apply_hooks()
    return {target for target in wanted if _current(target) is before[target]}


@functools.cache
def _warn_once(complaint: str) -> None:
    logger.warning("%s", complaint)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(set(names)))


def _current(target: str) -> Any:
    """Return what stands at a target; None where its module is not imported or has no such name."""
    return getattr(_owner(target), target.rpartition(".")[2], None)


def _owner(target: str) -> Any:
    """Return the module or class that a target belongs to, without importing anything."""
    path, _, _ = target.rpartition(".")
    if path in sys.modules:
        return sys.modules[path]
    module, _, name = path.rpartition(".")
    return getattr(sys.modules.get(module), name, None)
