"""What becomes of shortcuts, pinned layers and kernel plugins once a model is loaded, before it runs.

The moment is that in which SGLang builds the attention backend: the model is complete, its modules are
imported, nothing has run and no graph is captured yet. So no module is imported for a hook, and a process
without a model, such as the HTTP server, has none of them.
"""

import functools
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from weakref import WeakSet

import torch
from packaging.version import Version

from sglang_fl.dispatch.life import is_ours
from sglang_fl.errors import SettingsError
from sglang_fl.logs.dispatch_log import DispatchLog
from sglang_fl.sglang_adapter import releases
from sglang_fl.sglang_adapter.kernel_plugins import label_of, leave_to_plugin, whole_step_kernels
from sglang_fl.sglang_adapter.layers import ADAPTERS
from sglang_fl.sglang_adapter.layers.adapter import covering
from sglang_fl.sglang_adapter.shortcut_hooks import ShortcutHooks
from sglang_fl.sglang_adapter.shortcuts import DIRECT_CALLS
from sglang_fl.sglang_adapter.telling import tell_when_run

__all__ = ["LoadedModels"]

logger = logging.getLogger(__name__)


class LoadedModels:
    """Turns shortcuts off or watches them, and logs what SGLang has pinned or given to kernel plugins.

    Parameters
    ----------
    named : the ops whose backend the user named, and how: ``{"rms_norm": "SGLANG_FL_PER_OP"}``
    log : the dispatch log
    version : of SGLang
    mark : see ``ShortcutHooks``
    """

    def __init__(
        self,
        named: Mapping[str, str],
        log: DispatchLog,
        version: Version,
        mark: Callable[[str, Callable[..., Any]], Callable[..., Any]] | None = None,
    ) -> None:
        self._named = named
        self._log = log
        self._version = version
        self._seen: WeakSet[Any] = WeakSet()
        self._method = (releases.seam_path(version) or "").rpartition(".")[2]
        self._shortcuts = ShortcutHooks(named, log, version, mark)
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
        self._shortcuts.install(model)
        self._seen.add(model)
        self._tell_of_whole_steps(model)
        for layer in model.modules():
            self._tell_if_pinned(layer)
            self._leave_to_plugin(layer)
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
        kernels = whole_step_kernels(model)
        if kernels is not None and self._named:
            raise SettingsError(
                f"{_listed(self._named.values())} names {_listed(self._named)}, but SGLang lets a kernel "
                f"plugin ({label_of(kernels)}) run whole steps of this model without asking a layer. "
                f"Leave out the one or the other."
            )

    def _tell_if_pinned(self, layer: torch.nn.Module) -> None:
        """Let the first call of a layer that SGLang pinned to one of its methods tell the log."""
        adapters = covering(type(layer), ADAPTERS)
        for name in ("_forward_method", "forward") if adapters else ():
            own = vars(layer).get(name)
            if own is not None and getattr(own, "__self__", None) is layer and not is_ours(own):
                tell_when_run(layer, name, own, type(layer).__name__, "sglang(pinned)", self._log)
                for op in (adapter.op.name for adapter in adapters if adapter.op.name in self._named):
                    _warn_once(
                        f"{self._named[op]} names {op}, but SGLang has pinned {type(layer).__name__} layers "
                        f"to {own.__name__}"
                    )

    def _leave_to_plugin(self, layer: torch.nn.Module) -> None:
        """Leave a layer to a kernel plugin that SGLang has for its class, unless the user named its op."""
        ops = [adapter.op.name for adapter in covering(type(layer), ADAPTERS)]
        if hasattr(type(layer), self._method) and not any(op in self._named for op in ops):
            leave_to_plugin(layer, self._method, self._log)

    def _tell_of_whole_steps(self, model: torch.nn.Module) -> None:
        """Tell of a kernel plugin that runs whole steps, in the log once it has run one."""
        kernels = whole_step_kernels(model)
        if kernels is None:
            return
        name, label = type(model).__name__, label_of(kernels)
        logger.info(
            "SGLang's kernel plugin (%s) runs whole steps of %s: no layer is asked in these", label, name
        )
        try:
            tell_when_run(kernels, "forward", kernels.forward, name, f"sglang({label})", self._log)
        except AttributeError:  # an object without a dict
            logger.warning("the dispatch log cannot tell when this kernel plugin (%s) runs", label)

    def _tell_of_silu_quant(self, layer: torch.nn.Module) -> None:
        """Say once that SGLang's fused SiLU and FP8 quantisation ends where SiluAndMul is ours."""
        fused = vars(layer).get("activation_quant")
        if getattr(fused, "enabled", False) and not self._said_silu_quant:
            self._said_silu_quant = True
            logger.info("SGLang's fused_silu_quant never runs where SiluAndMul is not left to SGLang")


@functools.cache
def _warn_once(complaint: str) -> None:
    logger.warning("%s", complaint)


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(set(names)))
