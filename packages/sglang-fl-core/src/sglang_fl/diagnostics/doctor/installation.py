"""The dispatch log is empty: does SGLang find the plugin, and does it let it in?"""

import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import sglang_fl
from sglang_fl.diagnostics.doctor.configured import configured
from sglang_fl.diagnostics.doctor.finding import Finding, ok, problem
from sglang_fl.diagnostics.doctor.launch import Launch
from sglang_fl.errors import quoted
from sglang_fl.settings import SglangSettings

__all__ = ["entry_points", "installation", "selection", "several_platforms"]

DISTRIBUTION = "sglang-fl-core"
NAME = "sglang_fl"
#: Group -> the entry point of ours that must be in it.
ENTRY_POINTS = {"sglang.srt.plugins": NAME, "sglang.srt.platforms": NAME, "sglang_fl.vendors": "cpu"}
#: Those in which SGLang looks for plugins.
SGLANG_GROUPS = ("sglang.srt.plugins", "sglang.srt.platforms")


def _is_installed() -> bool:
    return any(True for _ in metadata.distributions(name=DISTRIBUTION))


def installation(launch: Launch) -> Iterator[Finding]:
    """Is core installed in this Python, and not only on its path?"""
    folder = Path(sglang_fl.__file__).parent
    if _is_installed():
        yield ok(DISTRIBUTION, f"{sglang_fl.__version__} in {folder}, Python {sys.executable}")
        return
    yield problem(
        DISTRIBUTION,
        f"not installed in {sys.executable}: {folder} is only on its path, so SGLang cannot find the plugin",
        f"{sys.executable} -m pip install {DISTRIBUTION} (from a checkout: ./packages/{DISTRIBUTION}), and "
        f"take the folder off PYTHONPATH",
    )


def entry_points(launch: Launch) -> Iterator[Finding]:
    """Are the entry points there by which SGLang and core find us?"""
    if not _is_installed():
        return  # told by the check before
    missing = [
        group for group, name in ENTRY_POINTS.items() if not metadata.entry_points(group=group, name=name)
    ]
    claims = [text for group in SGLANG_GROUPS if (text := _second_claim(group))]
    for text in claims:
        yield problem("entry points", text, "uninstall the package that is not sglang-fl-core")
    if missing:
        yield problem(
            "entry points",
            f"{DISTRIBUTION} is installed without those of {', '.join(missing)}",
            f"{sys.executable} -m pip install --force-reinstall --no-deps {DISTRIBUTION}",
        )
    elif not claims:
        yield ok("entry points", f"all {len(ENTRY_POINTS)} are there")


def _second_claim(group: str) -> str | None:
    """Say which packages bring an entry point of our name, and whose SGLang takes, or None where one does."""
    points = list(metadata.entry_points(group=group, name=NAME))
    if len(points) < 2:
        return None
    packages = [f"{point.dist.name} {point.dist.version}" if point.dist else point.value for point in points]
    # SGLang keys them by their names, so that the last one stands.
    return f"{NAME} of {group} is claimed by {' and '.join(packages)}; SGLang takes that of {packages[-1]}"


def _other_platforms() -> list[str]:
    """Return the packages that bring a platform of another name."""
    points = metadata.entry_points(group="sglang.srt.platforms")
    return sorted({point.dist.name if point.dist else point.value for point in points if point.name != NAME})


def several_platforms(error: str) -> str | None:
    """Return what to do where SGLang names several platforms, or None where it does not."""
    others = _other_platforms()
    if not others or "SGLANG_PLATFORM" not in error:
        return None
    return f"set SGLANG_PLATFORM={NAME}, or uninstall {', '.join(others)}"


def _has_own_platform() -> bool:
    """Whether SGLang has a platform for the device, so that the vendor brings none."""
    configuration = configured()
    return configuration is not None and configuration.registry.vendor.platform is None


def selection(launch: Launch) -> Iterator[Finding]:
    """Do SGLang's own selectors let the plugin in?"""
    sglang = SglangSettings.read()
    names = [name.strip() for name in (sglang.plugins or "").split(",") if name.strip()]
    if names and NAME not in names:
        yield problem(
            "SGLANG_PLUGINS",
            f"SGLANG_PLUGINS={sglang.plugins!r} keeps the plugin out: it is called {NAME!r}",
            f"unset it, or add {NAME} to it",
        )
    if sglang.platform and sglang.platform != NAME:
        yield problem(
            "SGLANG_PLATFORM",
            f"SGLANG_PLATFORM={sglang.platform!r} makes SGLang drop this plugin without a warning",
            "unset it; to choose the chip's vendor, set SGLANG_FL_PLATFORM",
        )
    if sglang.platform == NAME and _has_own_platform():
        yield problem(
            "SGLANG_PLATFORM",
            f"SGLANG_PLATFORM={NAME!r} is refused: on this device SGLang's own platform stays active",
            "unset it; to choose the chip's vendor, set SGLANG_FL_PLATFORM",
        )
    if NAME in names and not sglang.platform:
        yield ok("SGLANG_PLUGINS", f"SGLANG_PLUGINS={quoted(sglang.plugins or '')} lets the plugin in")
    if sglang.platform == NAME and not _has_own_platform():
        yield ok("SGLANG_PLATFORM", f"SGLANG_PLATFORM={NAME!r}: on this device the platform is ours")
    if not names and not sglang.platform:
        others = _other_platforms()
        also = f"; {', '.join(others)} brings a platform too, and of several SGLang wants one named"
        text = f"not set: SGLang takes every plugin{also if others else ''}"
        remedy = f"if it asks for one: SGLANG_PLATFORM={NAME}, or uninstall the others" if others else ""
        yield ok("SGLANG_PLUGINS, SGLANG_PLATFORM", text, remedy)
