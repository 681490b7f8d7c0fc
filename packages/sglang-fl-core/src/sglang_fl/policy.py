"""Who may run, and in what order: order tokens, and the order of each op."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from sglang_fl.errors import SettingsError, choices
from sglang_fl.vendor import BackendKind, OpImpl

__all__ = ["Order", "Policy", "Token", "parse_order"]

_KINDS = tuple(kind.value for kind in BackendKind)
_QUALIFIED = re.compile(r"(vendor|impl):([A-Za-z0-9_.]+)")


@dataclass(frozen=True)
class Token:
    """One step of an order: ``flagos``, ``vendor``, ``vendor:NAME``, ``reference`` or ``impl:ID``."""

    text: str

    def __post_init__(self) -> None:
        if self.text not in _KINDS and not _QUALIFIED.fullmatch(self.text):
            valid = [*_KINDS, "vendor:NAME", "impl:ID"]
            raise SettingsError(f"there is no backend kind {self.text!r}. {choices(self.text, valid)}")

    def selects(self, impl: OpImpl) -> bool:
        """Whether this step means that implementation."""
        head, _, name = self.text.partition(":")
        if not name:
            return impl.kind.value == head
        return impl.id == name if head == "impl" else impl.id.split(".")[:2] == ["vendor", name]

    def __str__(self) -> str:
        return self.text


Order = tuple[Token, ...]


def parse_order(text: str) -> Order:
    """Parse ``vendor|reference``.

    Raises
    ------
    SettingsError : an empty step, an unknown kind, the same step twice
    """
    tokens = []
    for part in text.split("|"):
        step = part.strip()
        if not step:
            raise SettingsError(f"in {text!r} there is an empty step. Write vendor|reference")
        token = Token(step)
        if token in tokens:
            raise SettingsError(f"in {text!r} the step {step!r} stands twice")
        tokens.append(token)
    return tuple(tokens)


@dataclass(frozen=True)
class Policy:
    """The order in which the implementations of each op are tried.

    Parameters
    ----------
    prefer : the kind that is tried first; the others follow in the order flagos, vendor, reference
    per_op : orders that the user gave for single ops; nothing else runs for those
    strict : a candidate that fails in its first call is an error, not a reason to try the next
    """

    prefer: BackendKind = BackendKind.FLAGOS
    per_op: Mapping[str, Order] = field(default_factory=dict)
    strict: bool = False

    def names_reference(self, op_name: str) -> bool:
        """Whether the user, or the vendor, asked for this op's reference, and not only for want of others."""
        return op_name in self.per_op or self.prefer is BackendKind.REFERENCE

    def order(self, op_name: str) -> Order:
        """Return the order of an op."""
        if op_name in self.per_op:
            return self.per_op[op_name]
        kinds = [self.prefer, *(kind for kind in BackendKind if kind is not self.prefer)]
        return tuple(Token(kind.value) for kind in kinds)
