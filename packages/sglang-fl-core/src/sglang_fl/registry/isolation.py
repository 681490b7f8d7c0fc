"""Keep a vendor package's fault its own while its object is read and its chip is looked for."""

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

from sglang_fl import ops
from sglang_fl.errors import VendorError
from sglang_fl.ops import OPS, Op
from sglang_fl.vendor import Vendor, load_target

__all__ = ["probe", "unchanged"]

#: Far above what a probe takes that imports a device's libraries on a busy host.
PROBE_SECONDS = 30.0


def probe(vendor: Vendor, seconds: float | None = None) -> str | None:
    """Ask a vendor's probe why its chip is not here, for a limited time.

    It runs in a thread of its own, which is left behind where it does not end. What cannot be helped is
    a probe that hangs in C code without giving up Python's lock.

    Parameters
    ----------
    seconds : the limit; ``PROBE_SECONDS`` if None

    Raises
    ------
    VendorError : it took too long, or returned neither None nor a text
    BaseException : whatever it raised
    """
    limit = PROBE_SECONDS if seconds is None else seconds
    ended, answer = _in_thread(load_target(vendor.probe), f"probe of {vendor}", limit)
    if not ended:
        raise VendorError(f"its probe {vendor.probe} did not return within {limit:g} s")
    if isinstance(answer, BaseException):
        raise answer
    if answer is not None and not isinstance(answer, str):
        raise VendorError(f"its probe returned {answer!r}, neither None nor a reason")
    return answer


def _in_thread(function: Callable[[], Any], name: str, seconds: float) -> tuple[bool, Any]:
    """Return whether the function ended in time, and what it returned or raised."""
    answers: list[Any] = []

    def run() -> None:
        try:
            answers.append(function())
        except BaseException as error:  # noqa: BLE001 - the caller raises it
            answers.append(error)

    thread = threading.Thread(target=run, name=name, daemon=True)  # a hanging one must not keep us alive
    thread.start()
    thread.join(seconds)
    return bool(answers), answers[0] if answers else None


@contextmanager
def unchanged(vendors: Iterable[Vendor]) -> Iterator[None]:
    """Hold a foreign package to leaving alone what all share: the ops, and these vendors' objects.

    What it changed is put back. Both are frozen, so an assignment already raises; this finds the rest:
    ``object.__setattr__``, and a reference replaced in its module.

    Raises
    ------
    VendorError : what it changed
    """
    kept = _shared(vendors)
    try:
        yield
    finally:
        changed = [entry for entry in kept if getattr(entry[0], entry[1], None) is not entry[2]]
        for owner, name, value in changed:
            object.__setattr__(owner, name, value)
    if changed:
        raise VendorError(f"it changed what is not its own: {', '.join(map(_described, changed))}")


def _shared(vendors: Iterable[Vendor]) -> list[tuple[Any, str, Any]]:
    """Return what must stay as it is: owner, attribute, value."""
    kept: list[tuple[Any, str, Any]] = [(ops, "OPS", OPS)]
    for op in OPS.values():
        kept.append((sys.modules[op.reference.__module__], op.name, op.reference))
    owners: list[Op | Vendor] = [*OPS.values(), *vendors]
    for owner in owners:
        kept += [(owner, field.name, getattr(owner, field.name)) for field in fields(owner)]
    return kept


def _described(entry: tuple[Any, str, Any]) -> str:
    owner, name, _ = entry
    return f"{getattr(owner, '__name__', owner)}.{name}"
