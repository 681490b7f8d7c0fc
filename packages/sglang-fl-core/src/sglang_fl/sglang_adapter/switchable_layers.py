"""The fused layers of a loaded model, each of which can be switched to its kernel and back.

So can the kernels that are no layers but methods of an attention backend.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

from sglang_fl.dispatch.life import LayerLife
from sglang_fl.dispatch.plan import Forward
from sglang_fl.sglang_adapter.hook import LayerHook
from sglang_fl.sglang_adapter.methods import methods_of, methods_of_model
from sglang_fl.sglang_adapter.seams import Seam

__all__ = ["SwitchableLayers"]


@dataclass(frozen=True)
class _Switchable:
    """One layer, or one method of a kernel.

    Parameters
    ----------
    name : in the model; of a method of a layer that and the method's, of one of a backend its title
    own : SGLang's own forward of it
    ours : what would run it instead
    reference : the op's reference in its place
    op : the op's name
    put : lets one of these run it
    """

    name: str
    own: Forward
    ours: LayerLife
    reference: LayerLife
    op: str
    put: Callable[[Forward], None]


class SwitchableLayers:
    """Switches layers by swapping the callable that SGLang keeps for each; off at first.

    Only for an engine without CUDA graphs, which replay what was captured, and without ``torch.compile``.

    Parameters
    ----------
    hook : knows what would run a layer; None where layer 2 is off: then there is nothing to switch
    reference_hook : the same, with the references alone
    seam : of this SGLang
    """

    def __init__(self, hook: LayerHook | None, reference_hook: LayerHook | None, seam: Seam) -> None:
        self._hook = hook
        self._reference_hook = reference_hook
        self._seam = seam
        self._layers: list[_Switchable] = []
        self._names: dict[int, str] = {}

    def find(self, model: Any, backend: Any = None) -> None:
        """Find what an adapter covers. The model has run, so each layer holds SGLang's own forward.

        Parameters
        ----------
        model : a loaded model
        backend : its attention backend
        """
        self._layers = []
        self._names = {id(layer): name for name, layer in model.named_modules()}
        if self._hook is None or self._reference_hook is None:
            return
        hooks = (self._hook, self._reference_hook)
        for name, layer in model.named_modules():
            if hasattr(type(layer), self._seam.method):
                own = layer._forward_method or getattr(layer, self._seam.method)()
                put = partial(setattr, layer, "_forward_method")
                self._add(name, own, put, *(hook.take_over(layer, own) for hook in hooks))
        methods = [(f"{self.name_of(each.kernel)}.{each.name}", each) for each in methods_of_model(model)]
        methods += [(each.title, each) for each in methods_of(backend)]
        for name, method in methods:
            taken = (hook.take_over_method(method) for hook in hooks)
            self._add(name, method.current, method.put, *taken)

    def _add(
        self,
        name: str,
        own: Forward,
        put: Callable[[Forward], None],
        ours: LayerLife | None,
        plain: LayerLife | None,
    ) -> None:
        if ours is not None and ours.op is not None and plain is not None:
            self._layers.append(_Switchable(name, own, ours, plain, ours.op.name, put))

    def name_of(self, layer: Any) -> str:
        """Return a layer's name in the model."""
        return self._names.get(id(layer)) or type(layer).__name__

    @property
    def ops(self) -> dict[str, list[str]]:
        """The names of the layers of each op, in the model's order."""
        found: dict[str, list[str]] = {}
        for layer in self._layers:
            found.setdefault(layer.op, []).append(layer.name)
        return found

    def implementations(self) -> dict[str, dict[str, str]]:
        """Return for each op that has run the implementation that runs it: its id, kind and target."""
        ran = {layer.op: layer.ours.ran for layer in self._layers if layer.ours.ran is not None}
        return {op: {"id": i.id, "kind": str(i.kind), "target": i.target} for op, i in ran.items()}

    def use_references(self, change: Callable[[Any], Any]) -> None:
        """Let the references run all layers, and hand on what ``change`` makes of their results."""
        for layer in self._layers:
            layer.put(_changed(layer.reference, change))

    def switch(self, ops: Collection[str], layers: Collection[str] | None = None) -> None:
        """Let our kernels run these ops, in these layers or in all, and SGLang run the rest."""
        for layer in self._layers:
            on = layer.op in ops and (layers is None or layer.name in layers)
            layer.put(layer.ours if on else layer.own)

    def plant(self, spoil: Callable[[Any], Any]) -> str | None:
        """Let the first layer's own results be spoiled until the next switch; return its name, if any."""
        if not self._layers:
            return None
        first = self._layers[0]
        first.put(_changed(first.own, spoil))
        return first.name


def _changed(forward: Forward, change: Callable[[Any], Any]) -> Forward:
    def changed(*args: Any, **kwargs: Any) -> Any:
        return change(forward(*args, **kwargs))

    return changed
