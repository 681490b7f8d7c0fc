"""Adapters of SGLang's layer classes; ``ADAPTERS`` is the catalogue, made of the files of this folder."""

import importlib
import pkgutil

from sglang_fl.sglang_adapter.layers.adapter import Adapter, by_layer_class

__all__ = ["ADAPTERS", "Adapter"]


def _adapters(package: str, folders: list[str]) -> dict[str, tuple[Adapter, ...]]:
    """Return the ``ADAPTERS`` of each file of a folder by layer class; within a file its order counts.

    Raises
    ------
    TypeError : a file defines none, or two have one for the same layer class, where no order is said
    """
    files: dict[str, str] = {}
    found: list[Adapter] = []
    for name in sorted(module.name for module in pkgutil.iter_modules(folders)):
        if name == "adapter":
            continue
        module = importlib.import_module(f"{package}.{name}")
        if not hasattr(module, "ADAPTERS"):
            raise TypeError(f"{module.__file__}: it defines no ADAPTERS, as each file of its folder must")
        for adapter in module.ADAPTERS:
            if files.setdefault(adapter.layer_class, name) != name:
                raise TypeError(
                    f"{module.__file__}: {files[adapter.layer_class]}.py has an adapter of "
                    f"{adapter.layer_class} too; all of one class must be in one file, which says their order"
                )
        found += module.ADAPTERS
    return by_layer_class(found)


ADAPTERS = _adapters(__name__, __path__)
