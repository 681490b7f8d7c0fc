"""The start-up banner: one line that says what this server consists of.

It is logged in the process that the user has started, because versions, vendor and settings are the same in
all others. What only a rank can know (how many ATen ops layer 1 has taken over, which
op is not on the preferred kind) each rank tells in a line of its own.
"""

import torch
from packaging.version import Version

from sglang_fl import __version__
from sglang_fl.aten import Plan
from sglang_fl.settings import Settings, SglangSettings
from sglang_fl.settings.contradictions import why_no_layer_1
from sglang_fl.startup import Configuration

__all__ = ["banner"]


def banner(configuration: Configuration, plan: Plan | None, sglang: Version) -> str:
    """Return the line.

    Parameters
    ----------
    configuration : what this process does
    plan : of layer 1, or None where it is off
    sglang : the version of SGLang
    """
    settings = configuration.settings
    packages = f"sglang-fl-core {__version__}{_vendor_package(configuration)}"
    parts = [
        f"{packages} on SGLang {sglang}, torch {torch.__version__}: vendor {configuration.registry.vendor}",
        f"layer 1 {_layer_1(configuration, plan)}",
        f"layer 2 {_layer_2(settings)}",
        *_choices(settings),
    ]
    return "; ".join(parts)


def _vendor_package(configuration: Configuration) -> str:
    name = configuration.registry.vendor.name
    found = (vendor.distribution for vendor in configuration.registry.installed if vendor.name == name)
    distribution = next(found, "")
    return "" if distribution.startswith("sglang-fl-core") or not distribution else f" with {distribution}"


def _layer_1(configuration: Configuration, plan: Plan | None) -> str:
    settings = configuration.settings
    if plan is None:
        reason = why_no_layer_1(settings, configuration.registry.vendor) or "see the warning above"
        return f"off ({reason.removesuffix(' (layer 1)')})"
    record = f", recorded in {settings.flaggems_log_path}" if settings.flaggems_record else ""
    return f"on for {len(plan.replaced)} ATen ops{record}"


def _layer_2(settings: Settings) -> str:
    if not settings.oot_enabled:
        return f"off ({settings.title('oot_enabled')}=0)"
    return f"on, {f'logged in {settings.dispatch_log}' if settings.dispatch_log else 'no dispatch log'}"


def _choices(settings: Settings) -> list[str]:
    """Return what pins ops to implementations, takes them from layer 2, or samples their calls."""
    found = [settings.quoted(name) for name in ("per_op", "verify") if getattr(settings, name)]
    found += [
        settings.quoted(name) for name in ("oot_whitelist", "oot_blacklist") if getattr(settings, name).names
    ]
    forced = SglangSettings.read().force_fused_op_backend
    return [*found, f"SGLANG_FORCE_FUSED_OP_BACKEND={forced!r}"] if forced else found
