"""Which release of SGLang the tests run on, for what is not the same on all of them."""

import functools
import inspect
import pkgutil

import pytest
from sglang.srt.layers.layernorm import RMSNorm

from sglang_fl.logs.dispatch_log import DispatchLog
from sglang_fl.sglang_adapter import releases, seams
from sglang_fl.sglang_adapter.hook import LayerHook
from sglang_fl.startup import configure

__all__ = [
    "RELEASE",
    "SEAM",
    "UNSUPPORTED",
    "can_force_native",
    "hook_with",
    "present",
    "resolves_in_the_first_call",
]

RELEASE = seams.installed_version()
SEAM = seams.seam_of(RELEASE)
#: A release that is too new.
UNSUPPORTED = f"{releases.newest()}9"

resolves_in_the_first_call = pytest.mark.skipif(
    SEAM.method == "dispatch_forward",
    reason=f"SGLang {RELEASE} resolves a layer's kernel in its constructor, once",
)


def present(is_there: bool, what: str) -> pytest.MarkDecorator:
    """Skip a test on a release that has no such thing."""
    return pytest.mark.skipif(not is_there, reason=f"SGLang {RELEASE} has no {what}")


can_force_native = present(
    "force_native" in inspect.signature(RMSNorm.__init__).parameters, "RMSNorm(force_native=True)"
)


def hook_with(log: DispatchLog, monkeypatch: pytest.MonkeyPatch) -> LayerHook:
    """Put a hook with a dispatch log of its own in the place of the plugin's."""
    hook = LayerHook(configure().resolutions, log)
    owner = pkgutil.resolve_name(SEAM.owner)
    resolve = inspect.unwrap(getattr(owner, SEAM.method))
    hooked = functools.wraps(resolve)(lambda layer: hook(resolve, layer))  # as SGLang's registry does it
    monkeypatch.setattr(owner, SEAM.method, hooked)
    return hook
