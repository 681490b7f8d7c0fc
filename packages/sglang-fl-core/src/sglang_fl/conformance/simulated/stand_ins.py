"""Vendor packages that can be imported while their chip is simulated.

A stand-in that a vendor package wrote holds emulations of the vendor library's functions. An empty one only
exists; using any other attribute than the chip's own module is an error that says so.
"""

import importlib
import importlib.abc
import importlib.machinery
import sys
import types
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from sglang_fl.conformance.simulated import native

__all__ = ["install"]


class EmptyStandIn(types.ModuleType):
    """A package with nothing in it but the chip's module, as in ``torch_mlu.mlu``."""

    def __getattr__(self, name: str) -> Any:
        device_type = torch._C._get_privateuse1_backend_name()
        if name == device_type:
            return getattr(torch, device_type)
        if name.startswith("__"):
            raise AttributeError(name)
        title = self.__name__
        native.note(f"{title}.{name} missing")
        raise AttributeError(
            f"{title}.{name}: the stand-in of {title} for the simulated {device_type} has no such thing"
        )


class Absent:
    """What can be imported and not be used.

    Parameters
    ----------
    title : its full name
    """

    def __init__(self, title: str) -> None:
        self._title = title
        self.__name__ = title.rpartition(".")[2]

    def __getattr__(self, name: str) -> "Absent":
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(f"{self._title}.{name}")

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        """Refuse.

        Raises
        ------
        NotImplementedError : always
        """
        native.note(f"{self._title} missing")
        raise NotImplementedError(f"{self._title} is not there on a simulated chip")


class ImportableStandIn(types.ModuleType):
    """A package or module in which every name exists, and nothing works."""

    def __getattr__(self, name: str) -> Any:
        device_type = torch._C._get_privateuse1_backend_name()
        if name == device_type:
            return getattr(torch, device_type)
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(f"{self.__name__}.{name}")


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the stand-ins, after everything that is really installed.

    Parameters
    ----------
    sources : as ``SimulatedChip.stand_ins``
    importable : as there
    """

    def __init__(self, sources: Mapping[str, str | None], importable: Sequence[str]) -> None:
        self._sources = sources
        self._importable = importable

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """Return a spec for a stand-in."""
        if name not in self._sources and not self._is_importable(name):
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=self._is_importable(name))

    def _is_importable(self, name: str) -> bool:
        return name.partition(".")[0] in self._importable

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType:
        """Return an empty module."""
        kind = ImportableStandIn if self._is_importable(spec.name) else EmptyStandIn
        return kind(spec.name, "A stand-in for the simulated chip.")

    def exec_module(self, module: types.ModuleType) -> None:
        """Give a stand-in the public names of the module that stands in."""
        source = self._sources.get(module.__name__)
        if source is not None:
            found = importlib.import_module(source)
            names = getattr(found, "__all__", [name for name in vars(found) if not name.startswith("_")])
            vars(module).update({name: getattr(found, name) for name in names})


def install(sources: Mapping[str, str | None], importable: Sequence[str]) -> None:
    """Make the stand-ins importable."""
    if sources or importable:
        sys.meta_path.append(Finder(dict(sources), importable))
