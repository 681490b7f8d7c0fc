"""Makes the attention backend known to SGLang, in each process that loads the plugin."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from packaging.version import Version

from sglang_fl.errors import SettingsError
from sglang_fl.sglang_adapter.attention.accepted import accept
from sglang_fl.sglang_adapter.releases import PLAIN_PREFILL, is_supported

__all__ = ["NAME", "offer"]

#: For ``--attention-backend``.
NAME = "sglang_fl"


def offer(version: Version, guard: Callable[[], AbstractContextManager[None]]) -> None:
    """Let SGLang's arguments accept the backend's name, and let SGLang build it.

    Nobody gets it who does not ask for it.

    Parameters
    ----------
    version : of SGLang; one that is not supported is left alone
    guard : is entered where the backend is built, in a process that runs a model
    """
    if not is_supported(version):
        return
    from sglang.srt.layers.attention.attention_registry import (
        ATTENTION_BACKENDS,
        register_attention_backend,
    )
    from sglang.srt.server_args import add_attention_backend_choices

    if NAME in ATTENTION_BACKENDS:
        return

    def create(runner: Any) -> Any:
        with guard():
            return _create(runner, version)

    register_attention_backend(NAME)(create)
    add_attention_backend_choices([NAME])
    if version in PLAIN_PREFILL:
        accept(NAME)


def _create(runner: Any, version: Version) -> Any:
    """Return the backend for a runner.

    Raises
    ------
    SettingsError : it cannot serve this model, or not on this SGLang
    """
    if version not in PLAIN_PREFILL:
        raise SettingsError(
            f"--attention-backend {NAME} needs SGLang {PLAIN_PREFILL.first} or later: SGLang {version} "
            f"launches Triton kernels in each prefill beside a backend of this name; use torch_native"
        )
    from sglang_fl.sglang_adapter.attention.backend import PagedAttention
    from sglang_fl.sglang_adapter.attention.limits import why_not

    reason = why_not(runner)
    if reason is not None:
        raise SettingsError(f"--attention-backend {NAME} does not support {reason}; use another one")
    return PagedAttention(runner)
