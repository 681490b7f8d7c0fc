"""The ops, found in their folder: listing them imports none, asking for one imports its module alone."""

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sglang_fl.ops.op import Op

__all__ = ["PARTS", "Catalogue"]

#: Ops that do in one what SGLang does by several layers, and the ops of these layers.
PARTS: Mapping[str, tuple[str, ...]] = {"qk_norm_rope": ("rms_norm", "rotary_embedding")}

#: The modules of the folder that are no op's.
_NO_OPS = ("catalogue", "compare", "op")


class Catalogue(Mapping[str, "Op"]):
    """The ops of a package by name, in alphabetical order; read-only, because all packages share it.

    Each module of the package is an op's, has the op's name and defines ``OP``. What ops share lies in
    packages below it.

    Parameters
    ----------
    package : its name
    folders : where it lies: its ``__path__``
    """

    def __init__(self, package: str, folders: list[str]) -> None:
        self._package = package
        found = {module.name for module in pkgutil.iter_modules(folders) if not module.ispkg}
        self._ops: dict[str, Op | None] = dict.fromkeys(sorted(found.difference(_NO_OPS)))

    def __getitem__(self, name: str) -> "Op":
        """Return the op, whose module is imported the first time.

        Raises
        ------
        KeyError : there is no such op
        TypeError : its module does not define ``OP``, or one of another name
        """
        op = self._ops[name]
        if op is None:
            op = self._ops[name] = self._load(name)
        return op

    def _load(self, name: str) -> "Op":
        module = importlib.import_module(f"{self._package}.{name}")
        op: Op | None = getattr(module, "OP", None)
        if op is None:
            raise TypeError(f"{module.__file__}: it defines no OP, as the file of an op must")
        if op.name != name:
            raise TypeError(f"{module.__file__}: its OP is named {op.name!r}; file and op have one name")
        return op

    def __contains__(self, name: object) -> bool:
        return name in self._ops  # Mapping's own would import the op's module

    def __iter__(self) -> Iterator[str]:
        return iter(self._ops)

    def __len__(self) -> int:
        return len(self._ops)
