"""Puts the catalogue of shortcuts into force: turns them off or watches them, in what is imported by now."""

import logging
import sys
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any

import torch
from packaging.version import Version
from sglang.srt.plugins.hook_registry import HookRegistry, HookType

from sglang_fl.errors import SettingsError
from sglang_fl.logs.dispatch_log import DispatchLog
from sglang_fl.sglang_adapter.kernel_faults import why_wrong
from sglang_fl.sglang_adapter.shortcuts import SHORTCUTS, Shortcut, Watch

__all__ = ["ShortcutHooks"]

logger = logging.getLogger(__name__)

Hook = Callable[..., Any]


class ShortcutHooks:
    """Hooks SGLang's shortcuts, each once.

    A shortcut is turned off where the user named an op that it passes over, or where its kernel is known to
    be wrong in this release. The others are watched.

    Parameters
    ----------
    named : the ops whose backend the user named, and how: ``{"rms_norm": "SGLANG_FL_PER_OP"}``
    log : the dispatch log
    version : of SGLang
    mark : ``mark(name, function)`` returns the function of a shortcut that is not turned off as it is to be
        called from now on; then nothing is watched. None: they are watched
    """

    def __init__(
        self,
        named: Mapping[str, str],
        log: DispatchLog,
        version: Version,
        mark: Callable[[str, Hook], Hook] | None = None,
    ) -> None:
        self._mark = mark
        self._named = named
        self._log = log
        self._version = version
        self._tried: set[str] = set()
        self._told: set[str] = set()

    def install(self, model: torch.nn.Module) -> None:
        """Hook what this model can run and none before it could: the methods of its layers, and functions.

        Not more: for each hook SGLang looks through all that is imported, 0.05 s each time.

        Parameters
        ----------
        model : one that has just been loaded

        Raises
        ------
        SettingsError : there is no way to turn off a shortcut past an op that the user named
        """
        classes = {type(layer) for layer in model.modules()}
        switches: dict[str, Hook] = {}
        watchers: dict[str, Hook] = {}
        for shortcut in (known for known in SHORTCUTS if self._version in known.releases):
            if not _can_run(shortcut.target, classes):
                continue
            if shortcut.switches and self._is_off(shortcut):
                switches.update(self._switches(shortcut))
            elif self._mark and _current(shortcut.target) is not None:
                watchers[shortcut.target] = _Marked(shortcut.name, self._mark)
            elif shortcut.watch and _current(shortcut.target) is not None:
                facts = (shortcut.target, shortcut.name)
                watchers[shortcut.target] = _Watcher(*facts, shortcut.watch, self._log)
        not_hooked = self._hook(watchers | switches)
        for target in sorted(not_hooked & switches.keys()):
            self._complain(target)
        self._tell_what_is_off(classes)

    def _is_off(self, shortcut: Shortcut) -> bool:
        return bool(shortcut.passes(self._named) or why_wrong(shortcut.target, self._version))

    def _switches(self, shortcut: Shortcut) -> Iterator[tuple[str, Hook]]:
        for switch in shortcut.switches:
            if self._version not in switch.releases or _owner(switch.target) is None:
                continue
            if _current(switch.target) is not None:
                yield switch.target, switch.replacement
            elif shortcut.passes(self._named):
                op = shortcut.passes(self._named)[0]
                raise SettingsError(
                    f"{self._named[op]} names {op}, but SGLang's {shortcut.name} cannot be turned off: "
                    f"{switch.target} is not there. Leave {op} out."
                )
            else:
                self._warn_of_fault(switch.target, "is not there")

    def _hook(self, wanted: Mapping[str, Hook]) -> set[str]:
        """Hook what was not hooked before; return what SGLang could not hook.

        SGLang logs that and goes on. A function that another plugin has hooked at its start is among them.
        """
        untried = {target: hook for target, hook in wanted.items() if target not in self._tried}
        self._tried |= untried.keys()
        before = {target: _current(target) for target in untried}
        for target, hook in untried.items():
            HookRegistry.register(target, hook, HookType.AROUND)
        if untried:
            HookRegistry.apply_hooks()
        return {target for target in untried if _current(target) is before[target]}

    def _complain(self, target: str) -> None:
        """Refuse the start where the user named an op and SGLang did not hook what turns its shortcut off.

        Where the shortcut is only wrong, the model is served as without us, and a warning says so.
        """
        owners = [s for s in SHORTCUTS if target in [switch.target for switch in s.switches]]
        if any(shortcut.passes(self._named) for shortcut in owners):
            raise SettingsError(
                f"{_listed(self._named.values())} needs SGLang's {target} to be hooked, and it was not; "
                f"SGLang's log above says why"
            )
        self._warn_of_fault(target, "was not hooked")

    @staticmethod
    def _warn_of_fault(target: str, why: str) -> None:
        logger.warning("SGLang's %s %s: a kernel that is known to be wrong cannot be turned off", target, why)

    def _tell_what_is_off(self, classes: Collection[type]) -> None:
        """Say once which shortcuts are off, and why; of a wrong one where its model is there."""
        known = [s for s in SHORTCUTS if self._version in s.releases and s.switches]
        named = {shortcut.name for shortcut in known if shortcut.passes(self._named)}
        if named - self._told:
            logger.info("%s: SGLang's %s never run", _listed(self._named.values()), _listed(named))
        self._told |= named
        for shortcut in known:
            wrong = why_wrong(shortcut.target, self._version)
            if wrong and shortcut.name not in self._told and _can_run(shortcut.target, classes):
                self._told.add(shortcut.name)
                facts = (self._version, shortcut.name, wrong)
                logger.info("SGLang %s: its kernel %s never runs, because it %s", *facts)


class _Marked:
    """Calls a function of SGLang as somebody wants it called."""

    def __init__(self, name: str, mark: Callable[[str, Hook], Hook]) -> None:
        self._name = name
        self._mark = mark
        self._marked: Hook | None = None

    def __call__(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._marked is None:
            self._marked = self._mark(self._name, original)
        return self._marked(*args, **kwargs)


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


def _can_run(target: str, classes: Collection[type]) -> bool:
    """Return whether a target's module is imported and, for a method of a layer, some class has it."""
    owner = _owner(target)
    if isinstance(owner, type) and issubclass(owner, torch.nn.Module):
        return any(issubclass(cls, owner) for cls in classes)
    return owner is not None


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(set(names)))


def _current(target: str) -> Any:
    """Return what a target names by now; None where its module is not imported or has no such name."""
    return getattr(_owner(target), target.rpartition(".")[2], None)


def _owner(target: str) -> Any:
    """Return the module or class that a target belongs to, without importing anything."""
    path, _, _ = target.rpartition(".")
    if path in sys.modules:
        return sys.modules[path]
    module, _, name = path.rpartition(".")
    return getattr(sys.modules.get(module), name, None)
