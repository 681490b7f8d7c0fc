"""From the environment to a checked configuration: settings, vendor, registry, resolutions."""

import functools
import logging
from dataclasses import dataclass, replace

from sglang_fl import settings as settings_module
from sglang_fl.dispatch.resolution import Resolution, check_orders, resolve_all
from sglang_fl.errors import SettingsError, choices, printable, quoted
from sglang_fl.foreign_names import NAMES
from sglang_fl.registry import InstalledVendor, Registry, choose_vendor, installed_vendors
from sglang_fl.settings import Setting, Settings, is_launcher
from sglang_fl.settings.contradictions import refuse_contradictions, refuse_one_file_for_two, without_effect
from sglang_fl.settings.policy import Policy

__all__ = ["Configuration", "configure", "inform_user", "simulate", "usable_vendors", "warn_user"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Configuration:
    """What this process will do.

    Parameters
    ----------
    settings : the effective settings
    registry : the chosen vendor and its implementations
    """

    settings: Settings
    registry: Registry

    @functools.cached_property
    def resolutions(self) -> dict[str, Resolution]:
        """What may run each op, by its name; empty where layer 2 is off. Imports the ops, and PyTorch."""
        return resolve_all(self.registry, self.settings.policy) if self.settings.oot_enabled else {}

    def explain(self) -> list[Setting]:
        """Tell each setting's value and where it came from."""
        return settings_module.explain(self.settings)


@functools.cache
def configure() -> Configuration:
    """Read the environment, find the vendor, resolve every op; once in each process.

    Raises
    ------
    SettingsError : anything a user must change, before anything has been changed in SGLang
    """
    own = Settings.read()
    logging.getLogger("sglang_fl").setLevel(own.log_level)
    simulate(own)
    installed = usable_vendors()
    for found in installed:
        if found.fault:
            warn_user(f"vendor {found.name} ({found.distribution}) is left out: {found.fault}")
    for complaint in settings_module.unknown_variables():
        warn_user(complaint)
    registry = Registry(choose_vendor(installed, own.platform, own.title("platform")), installed)
    settings = Settings.read(registry.vendor)
    logging.getLogger("sglang_fl").setLevel(settings.log_level)
    for complaint in without_effect(settings, registry.vendor):
        warn_user(complaint)
    refuse_contradictions(settings)
    _check_vendors(settings, registry)
    _check_names(settings.policy, registry)
    _warn_of_lifted(settings.policy, registry)
    if settings.oot_enabled:  # off is off: what cannot be met does not matter then
        check_orders(registry, settings.policy)
    return Configuration(settings, registry)


def usable_vendors() -> tuple[InstalledVendor, ...]:
    """Return the installed vendors; one whose own defaults are wrong is left out by its fault."""
    return tuple(map(_checked, installed_vendors()))


def _checked(found: InstalledVendor) -> InstalledVendor:
    wrong = None if found.fault else _why_wrong_defaults(found)
    return replace(found, fault=wrong) if wrong else found


def _why_wrong_defaults(found: InstalledVendor) -> str | None:
    """Say what is wrong with a package's defaults, by themselves, together, or with what it offers here."""
    vendor = found.vendor
    if vendor is None or not vendor.defaults:
        return None
    try:
        settings = Settings.of_vendor(vendor)
        if found.is_available:
            refuse_contradictions(settings)
            check_orders(Registry(vendor, (found,)), settings.policy)
    except SettingsError as error:
        return "; ".join(str(error).splitlines())
    return None


def simulate(settings: Settings) -> None:
    """Bring the simulated chip that the user asked for into this process, before anybody looks for chips.

    Raises
    ------
    SettingsError : no package offers it, or it is not available here
    """
    if settings.simulated is None:
        return
    refuse_one_file_for_two(settings)  # the record is opened here
    from sglang_fl.conformance import simulated

    simulated.load(
        simulated.find_chip(settings.simulated, settings.title("simulated")), settings.simulated_record
    )
    warn_user(f"{settings.quoted('simulated')}: this chip is simulated, with the speed of a CPU")


def warn_user(complaint: str) -> None:
    """Warn in the process that a user started; those that SGLang spawns would only say it again."""
    _tell_user(logging.WARNING, complaint)


def inform_user(text: str) -> None:
    """Say at INFO what concerns the whole server; as ``warn_user``."""
    _tell_user(logging.INFO, text)


def _tell_user(level: int, text: str) -> None:
    logger.log(level if is_launcher() else logging.DEBUG, "%s", printable(text))


def _names(installed: tuple[InstalledVendor, ...]) -> set[str]:
    return {vendor.name for vendor in installed}


def _check_vendors(settings: Settings, registry: Registry) -> None:
    """Refuse vendors that are allowed or denied and not installed: a typing error would filter nothing."""
    for setting in ("allow_vendors", "deny_vendors"):
        for name in getattr(settings, setting):
            if name not in _names(registry.installed):
                title, valid = settings.quoted(setting), choices(name, _names(registry.installed))
                ours = [vendor for vendor in NAMES.get(name.lower(), ()) if vendor not in valid]
                meant = f" It is called {ours[0]} here." if ours else ""
                raise SettingsError(f"{title}: no vendor {quoted(name)} is installed. {valid}{meant}")


def _warn_of_lifted(policy: Policy, registry: Registry) -> None:
    """Say that a kernel with a known fault may run, or that there was no need to allow it."""
    for op_name in sorted(policy.lifted):
        entries = registry.quarantine(op_name)
        for entry in entries:
            warn_user(f"!{op_name} lifts the quarantine of {entry.impl}: {entry}")
        if not entries:
            warn_user(f"!{op_name} lifts nothing: no implementation of it is in quarantine here")


def _check_names(policy: Policy, registry: Registry) -> None:
    """Refuse ``vendor:NAME`` and ``impl:ID`` that name nothing."""
    vendors = _names(registry.installed)
    for op_name, order in policy.per_op.items():
        ids = {impl.id for impl in registry.implementations(op_name)}
        written = "|".join(map(str, order))
        for token in order:
            head, _, name = token.text.partition(":")
            valid = {"vendor": vendors, "impl": ids}.get(head, set())
            if name and name not in valid:
                noun = "vendor" if head == "vendor" else f"implementation of {op_name}"
                raise SettingsError(
                    f"{policy.title('per_op')}: in {quoted(f'{op_name}={written}')} there is no "
                    f"{noun} {quoted(name)}. {choices(name, valid)}"
                )
