"""The dispatch log is empty: does SGLang find the plugin, and does it let it in?"""

import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import sglang_fl
from sglang_fl.diagnostics.doctor.configured import configured
from sglang_fl.diagnostics.doctor.finding import Finding, ok, problem
from sglang_fl.diagnostics.doctor.launch import Launch
from sglang_fl.settings import SglangSettings

__all__ = ["entry_points", "installation", "selection"]

DISTRIBUTION = "sglang-fl-core"
NAME = "sglang_fl"
#: Group -> the entry point of ours that must be in it.
ENTRY_POINTS = {"sglang.srt.plugins": NAME, "sglang.srt.platforms": NAME, "sglang_fl.vendors": "cpu"}


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
    if missing:
        yield problem(
            "entry points",
            f"{DISTRIBUTION} is installed without those of {', '.join(missing)}",
            f"{sys.executable} -m pip install --force-reinstall --no-deps {DISTRIBUTION}",
        )
    else:
        yield ok("entry points", f"all {len(ENTRY_POINTS)} are there")


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
        yield ok("SGLANG_PLUGINS", f"SGLANG_PLUGINS={sglang.plugins!r} lets the plugin in")
    if sglang.platform == NAME and not _has_own_platform():
        yield ok("SGLANG_PLATFORM", f"SGLANG_PLATFORM={NAME!r}: on this device the platform is ours")
    if not names and not sglang.platform:
        yield ok("SGLANG_PLUGINS, SGLANG_PLATFORM", "not set: SGLang takes every plugin")
