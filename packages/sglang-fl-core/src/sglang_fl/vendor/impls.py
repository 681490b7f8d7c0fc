"""What a vendor package says about one op: its implementations, and which of them must not run."""

from dataclasses import dataclass
from enum import Enum

from packaging.specifiers import InvalidSpecifier, SpecifierSet

from sglang_fl.errors import VendorError, choices
from sglang_fl.ops import OPS
from sglang_fl.vendor.targets import check_target

__all__ = ["BackendKind", "OpChoice", "OpImpl", "Quarantined", "check_fault"]


class BackendKind(Enum):
    """Where an implementation comes from."""

    FLAGOS = "flagos"
    """Portable Triton kernels: FlagGems' or the vendor package's own."""
    VENDOR = "vendor"
    """The chip's native kernels."""
    REFERENCE = "reference"
    """Plain PyTorch, from core."""

    def __str__(self) -> str:
        return self.value


@dataclass(frozen=True)
class OpImpl:
    """One implementation of one op.

    Parameters
    ----------
    op : the op's name, one of ``sglang_fl.ops.OPS``
    kind : where it comes from
    id : ``flagos``, ``vendor.<vendor>`` or ``reference``, with a suffix where one kind has two
        (``flagos.flag_gems``); unique for the op within the vendor
    target : ``module:function``; the function has the signature of the op's reference
    requires : modules that must be installed; they are looked up, not imported, beforehand

    Raises
    ------
    VendorError : an unknown op, an id that does not begin with its kind, a malformed target
    """

    op: str
    kind: BackendKind
    id: str
    target: str
    requires: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.op not in OPS:
            raise VendorError(f"OpImpl: there is no op {self.op!r}. {choices(self.op, OPS)}")
        if self.id.split(".")[0] != self.kind.value:
            raise VendorError(f"OpImpl {self.op}: id {self.id!r} must begin with its kind, {self.kind}")
        check_target(f"OpImpl {self.op} {self.id}", self.target)

    def __str__(self) -> str:
        return self.id


@dataclass(frozen=True)
class OpChoice:
    """Whether an implementation runs by default, by what was measured of it in a served model.

    One of which nothing was measured runs by default. One that does not is taken where the user asks for it;
    else SGLang's own kernel runs, and ``sglang-fl why OP`` gives the reason.

    Parameters
    ----------
    op : the op's name
    impl : the id of the implementation
    is_default : whether it runs unless the user asks for another one
    reason : the figure, and where it was measured, in half a sentence

    Raises
    ------
    VendorError : an unknown op, an empty text
    """

    op: str
    impl: str
    is_default: bool
    reason: str

    def __post_init__(self) -> None:
        if self.op not in OPS:
            raise VendorError(f"OpChoice: there is no op {self.op!r}. {choices(self.op, OPS)}")
        for name, text in (("impl", self.impl), ("reason", self.reason)):
            if not text:
                raise VendorError(f"OpChoice {self.op}: {name} is empty")


@dataclass(frozen=True)
class Quarantined:
    """A kernel that is known to be wrong or unsafe on a vendor's chip, with proof.

    It does not run while the library has one of these versions, whatever the user's lists say; the user
    lifts that on purpose by ``!op`` in one of them.

    Parameters
    ----------
    op : the op's name
    impl : the id of the implementation
    reason : what goes wrong, in one sentence
    library : the distribution that the kernel comes from, ``flag-gems``
    versions : those with the fault, as a version specifier: ``>=4.2,<4.4``
    reproduction : target of a function without arguments that returns normally as long as the fault is
        there; a test of the vendor package calls it

    Raises
    ------
    VendorError : an unknown op, a malformed specifier or target, an empty text
    """

    op: str
    impl: str
    reason: str
    library: str
    versions: str
    reproduction: str

    def __post_init__(self) -> None:
        where = f"Quarantined {self.op} {self.impl}"
        if self.op not in OPS:
            raise VendorError(f"{where}: there is no op {self.op!r}. {choices(self.op, OPS)}")
        if not self.impl:
            raise VendorError(f"{where}: impl is empty")
        check_fault(where, self.reason, self.library, self.versions, self.reproduction)

    def __str__(self) -> str:
        return f"{self.reason} ({self.library} {self.versions})"


def check_fault(where: str, reason: str, library: str, versions: str, reproduction: str) -> None:
    """Check what every entry of a quarantine states; raise ``VendorError`` with ``where`` in front."""
    for name, text in (("reason", reason), ("library", library)):
        if not text:
            raise VendorError(f"{where}: {name} is empty")
    try:
        SpecifierSet(versions)
    except InvalidSpecifier:
        raise VendorError(f"{where}: versions {versions!r} must be like '>=4.2,<4.4'") from None
    check_target(f"{where}: reproduction", reproduction)
