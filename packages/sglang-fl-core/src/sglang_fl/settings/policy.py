"""Who may run, and in what order: order tokens, the order of each op, vendor filters."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from sglang_fl.errors import SettingsError, choices, quoted
from sglang_fl.ops import OPS
from sglang_fl.vendor import BackendKind, OpImpl

__all__ = ["PREFERABLE", "SGLANG", "Order", "Policy", "Prefer", "Token", "parse_order", "parse_orders"]

_KINDS = tuple(kind.value for kind in BackendKind)
#: The step that leaves an op to SGLang.
SGLANG: Final = "sglang"
#: What may be preferred for all ops.
Prefer = BackendKind | Literal["sglang"]
PREFERABLE = (*_KINDS, SGLANG)
_QUALIFIED = re.compile(r"(vendor|impl):([A-Za-z0-9_.]+)")


@dataclass(frozen=True)
class Token:
    """One step of an order: a kind, ``vendor:NAME``, ``impl:ID``, or ``sglang``."""

    text: str

    def __post_init__(self) -> None:
        if self.text not in PREFERABLE and not _QUALIFIED.fullmatch(self.text):
            valid = [*PREFERABLE, "vendor:NAME", "impl:ID"]
            raise SettingsError(f"there is no backend kind {quoted(self.text)}. {choices(self.text, valid)}")

    def selects(self, impl: OpImpl) -> bool:
        """Whether this step means that implementation."""
        head, _, name = self.text.partition(":")
        if not name:
            return impl.kind.value == head
        return impl.id == name if head == "impl" else impl.id.split(".")[:2] == ["vendor", name]

    @property
    def is_sglangs(self) -> bool:
        """Whether this step leaves the op to SGLang."""
        return self.text == SGLANG

    @property
    def vendor(self) -> str | None:
        """The vendor whose native kernels this step names, or None where it names none."""
        head, _, name = self.text.partition(":")
        if head == "impl" and name.startswith("vendor."):
            return name.split(".")[1]
        return name if head == "vendor" and name else None

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
            raise SettingsError(f"in {quoted(text)} there is an empty step. Write vendor|reference")
        token = Token(step)
        if token in tokens:
            raise SettingsError(f"in {quoted(text)} the step {quoted(step)} appears twice")
        tokens.append(token)
    return tuple(tokens)


def parse_orders(value: str | Mapping[str, str | Sequence[str]]) -> dict[str, Order]:
    """Parse orders of single ops.

    Parameters
    ----------
    value : ``silu_and_mul=flagos;rms_norm=vendor|reference``, or a mapping of ops to orders, each a
        text or a list of steps

    Raises
    ------
    SettingsError : a malformed text, an unknown op, the same op twice; as ``parse_order``
    """
    orders: dict[str, Order] = {}
    for name, order in _pairs(value) if isinstance(value, str) else value.items():
        if name not in OPS:
            raise SettingsError(f"there is no op {quoted(name)}. {choices(name, OPS)}")
        if name in orders:
            raise SettingsError(f"the op {name!r} appears twice")
        orders[name] = parse_order(order if isinstance(order, str) else "|".join(order))
    return orders


def _pairs(text: str) -> Iterator[tuple[str, str]]:
    for part in text.split(";"):
        name, equals, order = (piece.strip() for piece in part.partition("="))
        if not name or not equals:
            raise SettingsError(
                f"{quoted(part)} is not of the form op=kind. Write rms_norm=vendor|reference;..."
            )
        yield name, order


@dataclass(frozen=True)
class Policy:
    """The order in which the implementations of each op are tried.

    Parameters
    ----------
    prefer : the kind that is tried first; the others follow in the order flagos, vendor, reference. Or
        ``sglang``: nothing is tried
    per_op : orders that the user gave for single ops; nothing else runs for those
    strict : a candidate that fails in its first call is an error, not a reason to try the next
    allow_vendors : if any, native kernels of no other vendor run
    deny_vendors : native kernels of these vendors do not run
    lifted : ops whose quarantine the user has lifted
    prefer_is_users : whether the user has said ``prefer``, rather than a vendor package or nobody
    titles : how the user calls a setting, by its field's name, where that is not its variable
    """

    prefer: Prefer = BackendKind.FLAGOS
    per_op: Mapping[str, Order] = field(default_factory=dict)
    strict: bool = False
    allow_vendors: tuple[str, ...] = ()
    deny_vendors: tuple[str, ...] = ()
    lifted: frozenset[str] = frozenset()
    titles: Mapping[str, str] = field(default_factory=dict)
    prefer_is_users: bool = False

    def title(self, setting: str) -> str:
        """Return how the user calls a setting: its variable, or its key in a file."""
        return self.titles.get(setting, f"SGLANG_FL_{setting.upper()}")

    def why_denied(self, vendor: str) -> str | None:
        """Say why a vendor's native kernels may not run, or None where they may."""
        if vendor in self.deny_vendors:
            return f"the vendor {vendor} is denied ({self.title('deny_vendors')})"
        if self.allow_vendors and vendor not in self.allow_vendors:
            return f"the vendor {vendor} is not among the allowed ones ({self.title('allow_vendors')})"
        return None

    def asks_for(self, impl: OpImpl) -> bool:
        """Whether the user asked for this implementation, or for its kind, and it did not just come about."""
        return impl.op in self.per_op or (self.prefer_is_users and impl.kind is self.prefer)

    def names_reference(self, op_name: str) -> bool:
        """Whether the user, or the vendor, asked for this op's reference, and not only for want of others."""
        return op_name in self.per_op or self.prefer is BackendKind.REFERENCE

    def order(self, op_name: str) -> Order:
        """Return the order of an op."""
        if op_name in self.per_op:
            return self.per_op[op_name]
        if self.prefer == SGLANG:
            return (Token(SGLANG),)
        kinds = [self.prefer, *(kind for kind in BackendKind if kind is not self.prefer)]
        return tuple(Token(kind.value) for kind in kinds)
