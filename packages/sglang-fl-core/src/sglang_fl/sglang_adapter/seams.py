"""The seams of SGLang: where a layer resolves its kernel, and is it ours?

This module alone asks which SGLang is installed; ``releases`` says what differs between them.

The two moments in the life of a scheduler are methods of ``Scheduler`` in all supported releases; both
models, the target and a draft, are loaded when ``maybe_init_draft_worker`` returns, and nothing is warmed up
or captured before.
"""

import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any

from packaging.version import InvalidVersion, Version

from sglang_fl.errors import SeamError, SettingsError
from sglang_fl.sglang_adapter import releases

__all__ = [
    "MODELS_LOADED",
    "SCHEDULER",
    "SERVING",
    "Seam",
    "has_platform",
    "installed_version",
    "routes_padded_tokens",
    "seam_of",
    "sglang_folder",
    "why_unsupported",
]


@dataclass(frozen=True)
class Seam:
    """A method of SGLang that we hook.

    Parameters
    ----------
    owner : its class, as a dotted path; for layer 2 the base class of the fused layers
    method : its name; for layer 2 the method that resolves a layer's kernel
    purpose : what for, in an error
    """

    owner: str
    method: str
    purpose: str = "where layer 2 enters"

    @property
    def target(self) -> str:
        """The hook target, as SGLang's ``HookRegistry`` spells it."""
        return f"{self.owner}.{self.method}"

    def _current(self) -> Any:
        return getattr(pkgutil.resolve_name(self.owner), self.method, None)

    def require(self) -> None:
        """Raise ``SeamError`` unless SGLang has the method."""
        try:
            found = self._current()
        except (ImportError, AttributeError) as error:
            raise SeamError(f"{self._where()} cannot be found: {error}") from error
        if found is None:
            raise SeamError(f"{self._where()} does not exist")

    def require_hooked(self, hook: Callable[..., Any]) -> None:
        """Raise ``SeamError`` unless a call of the method goes through ``hook``.

        SGLang logs a hook that it could not apply and goes on, so the method itself is asked: its
        wrappers are followed inwards until one holds the hook.
        """
        wrapper = self._current()
        while wrapper is not None:
            if inspect.isfunction(wrapper) and hook in inspect.getclosurevars(wrapper).nonlocals.values():
                return
            wrapper = getattr(wrapper, "__wrapped__", None)
        raise SeamError(f"{self._where()} was not hooked; SGLang's log above says why")

    def _where(self) -> str:
        return f"SGLang {installed_version()}: {self.target}, {self.purpose},"


SCHEDULER = "sglang.srt.managers.scheduler"
MODELS_LOADED = Seam(f"{SCHEDULER}.Scheduler", "maybe_init_draft_worker", "where layer 1 enters")
SERVING = Seam(f"{SCHEDULER}.Scheduler", "run_event_loop", "after which nothing should be compiled")


def sglang_folder() -> Path | None:
    """Return the folder of the installed SGLang, which is not imported; None where there is none."""
    spec = util.find_spec("sglang")
    if spec is None or not spec.submodule_search_locations:
        return None
    return Path(spec.submodule_search_locations[0])


def installed_version() -> Version:
    """Return the version of SGLang in this process.

    Raises
    ------
    SettingsError : it cannot be compared
    """
    from sglang.version import __version__

    try:
        return Version(__version__)
    except (InvalidVersion, TypeError):
        supported = f"Install sglang {releases.supported_range()}"
        raise SettingsError(f"SGLang's version {__version__!r} cannot be compared. {supported}.") from None


def has_platform(device_type: str) -> bool:
    """Whether SGLang itself knows a platform for these devices; then that one stays active."""
    from sglang.srt.platforms.device_mixin import PlatformEnum

    return device_type.upper() in PlatformEnum.__members__


def routes_padded_tokens(version: Version) -> bool:
    """Whether a routing function may be asked for tokens that are padding."""
    return version in releases.PADDED_TOKENS


def seam_of(version: Version) -> Seam | None:
    """Return the seam of a supported release, or None for any other."""
    path = releases.seam_path(version)
    if path is None:
        return None
    owner, _, method = path.rpartition(".")
    return Seam(owner, method)


def why_unsupported(version: Version) -> str:
    """Say that a release has no seam for us, and which have."""
    return f"SGLang {version} is not supported ({releases.supported_range()} are)"
