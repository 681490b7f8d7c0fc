"""From the environment to a checked configuration: settings, vendor, registry, resolutions."""

import functools
import logging
import multiprocessing
from dataclasses import dataclass

from sglang_fl import settings as settings_module
from sglang_fl.errors import SettingsError, choices
from sglang_fl.policy import Policy
from sglang_fl.registry import Registry, choose_vendor, installed_vendors
from sglang_fl.resolution import Resolution, resolve_all
from sglang_fl.settings import Setting, Settings

__all__ = ["Configuration", "configure", "warn_user"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Configuration:
    """What this process will do.

    Parameters
    ----------
    settings : the effective settings
    registry : the chosen vendor and its implementations
    resolutions : what may run each op, by the op's name; empty where layer 2 is off
    """

    settings: Settings
    registry: Registry
    resolutions: dict[str, Resolution]

    def explain(self) -> list[Setting]:
        """Tell each setting's value and where it came from."""
        vendor = self.registry.vendor
        return settings_module.explain(self.settings, vendor.name, vendor.defaults)


@functools.cache
def configure() -> Configuration:
    """Read the environment, find the vendor, resolve every op; once in each process.

    Raises
    ------
    SettingsError : anything a user must change, before anything has been changed in SGLang
    """
    own = Settings.read()
    logging.getLogger("sglang_fl").setLevel(own.log_level)
    installed = installed_vendors()
    for found in installed:
        if found.fault:
            warn_user(f"vendor {found.name} ({found.distribution}) is left out: {found.fault}")
    for complaint in settings_module.unknown_variables():
        warn_user(complaint)
    registry = Registry(choose_vendor(installed, own.platform), installed)
    settings = Settings.read(registry.vendor.defaults)
    logging.getLogger("sglang_fl").setLevel(settings.log_level)
    _check_names(settings.policy, registry)
    # Off is off: what cannot be met is of no account then.
    resolutions = resolve_all(registry, settings.policy) if settings.oot_enabled else {}
    return Configuration(settings, registry, resolutions)


def warn_user(complaint: str) -> None:
    """Warn in the process that a user started; those that SGLang spawns would only say it again."""
    # By name: we may be imported while a spawned process does not know its parent yet.
    is_spawned = multiprocessing.current_process().name != "MainProcess"
    logger.log(logging.DEBUG if is_spawned else logging.WARNING, "%s", complaint)


def _check_names(policy: Policy, registry: Registry) -> None:
    """Refuse ``vendor:NAME`` and ``impl:ID`` that name nothing."""
    vendors = {installed.name for installed in registry.installed}
    for op_name, order in policy.per_op.items():
        ids = {impl.id for impl in registry.implementations(registry.op(op_name))}
        for token in order:
            head, _, name = token.text.partition(":")
            valid = {"vendor": vendors, "impl": ids}.get(head, set())
            if name and name not in valid:
                noun = "vendor" if head == "vendor" else f"implementation of {op_name}"
                raise SettingsError(
                    f"SGLANG_FL_PER_OP: in '{op_name}={'|'.join(map(str, order))}' there is no "
                    f"{noun} {name!r}. {choices(name, valid)}"
                )
