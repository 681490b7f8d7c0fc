"""SGLang's entry points. Whatever goes wrong here ends the process with one message and code 2.

SGLang logs what a plugin raises and goes on without it; a server that runs half a plugin is the
worst outcome, so nothing is left to that.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sglang_fl.dispatch_log import DispatchLog
from sglang_fl.errors import SettingsError, SglangFlError
from sglang_fl.settings import Settings, SglangSettings
from sglang_fl.sglang_adapter.layer_lists import LayerLists, layer_lists
from sglang_fl.startup import Configuration, configure, warn_user

__all__ = ["activate_platform", "load_plugin"]

logger = logging.getLogger(__name__)


@contextmanager
def _exit_on_error() -> Iterator[None]:
    try:
        yield
    except SglangFlError as error:
        for line in str(error).splitlines():
            print(f"sglang-fl: {line}", file=sys.stderr)  # noqa: T201 - no log is configured yet
        raise SystemExit(2) from None
    except Exception:
        logger.exception("sglang-fl: the plugin failed to load; the process stops")
        raise SystemExit(2) from None


def activate_platform() -> str | None:
    """Return the class path of our SGLang platform, or None where SGLang has one itself.

    SGLang calls this while ``import sglang`` is half done.

    Raises
    ------
    SystemExit : code 2, on a wrong configuration
    """
    with _exit_on_error():
        path = _platform(configure())
        selected = SglangSettings().platform
        if path is None and selected == "sglang_fl":
            raise SettingsError(
                f"SGLANG_PLATFORM={selected!r}: on this device SGLang's own platform stays active. "
                f"Unset it; to choose the vendor, set SGLANG_FL_PLATFORM."
            )
        return path


def _platform(configuration: Configuration) -> str | None:
    vendor = configuration.registry.vendor
    if vendor.device_type == "cpu" and (
        torch.accelerator.is_available() or SglangSettings().use_cpu_engine == "1"
    ):
        return None  # the device is not a plain CPU, and SGLang has a platform for it
    if vendor.platform is None or (vendor.device_type != "cpu" and _is_in_tree(vendor.device_type)):
        return None
    return vendor.platform


def _is_in_tree(device_type: str) -> bool:
    from sglang_fl.sglang_adapter import seams

    return seams.has_platform(device_type)


def load_plugin() -> None:
    """Hook layer 2 into SGLang.

    Raises
    ------
    SystemExit : code 2, on a wrong configuration or where SGLang has no seam for us
    """
    with _exit_on_error():
        configuration = configure()
        from sglang_fl.sglang_adapter import server_args

        server_args.accept_former_flags()
        lists = layer_lists(configuration.settings)
        if configuration.settings.oot_enabled:
            _install_layer_2(configuration, lists)
        else:
            logger.info("layer 2 is off (SGLANG_FL_OOT_ENABLED=0)")


def _install_layer_2(configuration: Configuration, lists: LayerLists) -> None:
    from sglang_fl.sglang_adapter import hook, seams

    version = seams.installed_version()
    seam = seams.seam_of(version)
    if seam is None:
        _leave_unsupported(seams.why_unsupported(version), configuration)
        return
    _warn_of_references(configuration)
    log = _open_log(configuration.settings)
    layer_hook = hook.LayerHook(configuration.resolutions, log, lists)

    def require_hooked() -> None:
        with _exit_on_error():
            seam.require_hooked(layer_hook)

    hook.install(seam, layer_hook, when_applied=require_hooked)


def _leave_unsupported(reason: str, configuration: Configuration) -> None:
    if configuration.settings.per_op:
        raise SettingsError(
            f"{configuration.settings.title('per_op')} is set, but {reason}: layer 2 cannot be switched on"
        )
    warn_user(f"{reason}: layer 2 stays off, every op runs as SGLang chooses")


def _warn_of_references(configuration: Configuration) -> None:
    """On a chip the references are right, but slow, and rarely meant."""
    if configuration.registry.vendor.device_type != "cpu" or not torch.accelerator.is_available():
        return
    chosen = configuration.settings.platform
    cause = configuration.settings.quoted("platform") if chosen else "no vendor package for it is available"
    device = torch.accelerator.current_accelerator()
    warn_user(f"fused ops run their references on the {device} device: {cause} (see `sglang-fl vendors`)")


def _open_log(settings: Settings) -> DispatchLog:
    try:
        return DispatchLog(settings.dispatch_log)
    except OSError as error:
        raise SettingsError(
            f"{settings.quoted('dispatch_log')}: the file cannot be opened for "
            f"appending ({error.strerror}). Valid: a file in an existing, writable folder."
        ) from error
