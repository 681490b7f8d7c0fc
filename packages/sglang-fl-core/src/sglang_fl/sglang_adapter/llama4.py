"""Has Llama 4 take its queries and keys as a rotation returns them, on platforms of ours.

SGLang's kernels for CUDA rotate queries and keys where they lie, and ``models/llama4.py`` counts on that. It
takes what a rotation returns where it believes itself on an NPU: a name of its module tells it so, and is
asked about nothing else.
"""

import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from packaging.version import Version

from sglang_fl.errors import SettingsError
from sglang_fl.platform import NotCuda
from sglang_fl.sglang_adapter.methods import TARGET
from sglang_fl.sglang_adapter.releases import CHUNKS

__all__ = ["install", "take_what_is_returned"]

_MODEL = "sglang.srt.models.llama4"
_TAKES_RESULT = "_is_npu"


def install(version: Version, guard: Callable[[], AbstractContextManager[None]]) -> None:
    """Have it do so as soon as SGLang has built the attention backend of a model.

    Parameters
    ----------
    version : of SGLang; one whose Llama 4 we do not serve is left alone
    guard : is entered where the name is set, in a process that runs a model
    """
    from sglang.srt import platforms
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    if version not in CHUNKS or not isinstance(platforms.current_platform, NotCuda):
        return

    def built(backend: Any, *given: Any) -> None:
        with guard():
            take_what_is_returned()

    HookRegistry.register(TARGET, built, HookType.AFTER)


def take_what_is_returned() -> None:
    """Set the name, where the module is loaded.

    Raises
    ------
    SettingsError : the module has no such name
    """
    module = sys.modules.get(_MODEL)
    if module is None:
        return
    if not hasattr(module, _TAKES_RESULT):
        raise SettingsError(f"{_MODEL} has no {_TAKES_RESULT}: this SGLang is none that we know")
    setattr(module, _TAKES_RESULT, True)
