"""Keep a vendor package's fault its own while its chip is looked for: its probe has limited time.

What all packages share, the ops and the vendors' objects, is frozen: an assignment raises in the package that
tries it. Nothing guards against a package that gets around that on purpose.
"""

import threading
from collections.abc import Callable
from typing import Any

from sglang_fl.errors import VendorError
from sglang_fl.vendor import Vendor, load_target

__all__ = ["probe"]

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
