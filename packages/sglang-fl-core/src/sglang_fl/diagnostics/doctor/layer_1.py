"""The record of ATen ops is empty: is layer 1 on, does it replace anything, is it recorded?"""

from collections.abc import Iterator

from sglang_fl.aten import make_plan
from sglang_fl.diagnostics.doctor.child import last_line, run_python
from sglang_fl.diagnostics.doctor.configured import configured
from sglang_fl.diagnostics.doctor.finding import Finding, ok, problem, unknown
from sglang_fl.diagnostics.doctor.launch import Launch
from sglang_fl.diagnostics.doctor.packages import extra_of
from sglang_fl.diagnostics.doctor.writable import why_no_file
from sglang_fl.errors import SglangFlError
from sglang_fl.settings import Settings
from sglang_fl.settings.contradictions import why_no_layer_1
from sglang_fl.startup import Configuration

__all__ = ["aten_record", "flag_gems", "layer_1"]

SECONDS = 120
ON = "USE_FLAGGEMS=1 SGLANG_FLAGGEMS_RECORD=1 SGLANG_FLAGGEMS_LOG_PATH=FILE"


def _wants_record(settings: Settings) -> bool:
    return settings.flaggems_record or settings.flaggems_log_path is not None


def layer_1(launch: Launch) -> Iterator[Finding]:
    """Is any ATen op replaced?"""
    configuration = configured()
    if configuration is None:
        return
    settings, vendor = configuration.settings, configuration.registry.vendor
    off = why_no_layer_1(settings, vendor)
    if off is None:
        yield _of_plan(configuration)
    elif _wants_record(settings):
        yield problem("layer 1", f"{off}: there is nothing to record", _switch_on(configuration))
    else:
        yield ok("layer 1", off, _switch_on(configuration))


def _switch_on(configuration: Configuration) -> str:
    offer = configuration.registry.vendor.aten
    if offer is None:
        return "install the package of a vendor that has ATen kernels (see `sglang-fl vendors`)"
    if offer.missing:
        return f"install {', '.join(offer.missing)} into this Python"
    return "set USE_FLAGGEMS=1"


def _of_plan(configuration: Configuration) -> Finding:
    settings = configuration.settings
    try:
        plan = make_plan(settings, configuration.registry.vendor)
    except SglangFlError as error:
        return problem("layer 1", str(error), "correct the list; `sglang-fl ops --aten` shows the names")
    if plan.replaced:
        return ok("layer 1", f"on: {len(plan.replaced)} of {len(plan.decisions)} ATen ops are replaced")
    names = ("flagos_whitelist", "flagos_blacklist")
    lists = [settings.quoted(name) for name in names if getattr(settings, name).names]
    cause = f"{lists[0]} leaves none" if lists else "the vendor's list names none, or all are in quarantine"
    return problem(
        "layer 1", f"no ATen op is replaced: {cause}", "`sglang-fl ops --aten` says why for each op"
    )


def aten_record(launch: Launch) -> Iterator[Finding]:
    """Is the record switched on, and can its file be written?"""
    configuration = configured()
    if configuration is None:
        return
    settings = configuration.settings
    path = settings.flaggems_log_path
    if not _wants_record(settings):
        yield ok("ATen record", "off", f"to record: {ON}")
    elif not settings.flaggems_record:
        text = f"{settings.quoted('flaggems_log_path')} is set, and recording is off"
        yield problem("ATen record", text, "set SGLANG_FLAGGEMS_RECORD=1")
    elif path is None:
        text = f"{settings.quoted('flaggems_record')} is set, and no file is named"
        yield problem("ATen record", text, "set SGLANG_FLAGGEMS_LOG_PATH=FILE")
    elif reason := why_no_file(path):
        text = f"{settings.quoted('flaggems_log_path')} cannot be written: {reason}"
        yield problem("ATen record", text, "name a file in an existing, writable folder")
    else:
        yield ok("ATen record", f"on, {path} can be written", "an empty one: send a request first")


def flag_gems(launch: Launch) -> Iterator[Finding]:
    """Does FlagGems import, and for which device? Tried in a process of its own."""
    configuration = configured()
    if configuration is None:
        return
    vendor = configuration.registry.vendor
    needed = any("flag_gems" in impl.requires for impl in vendor.impls)
    if not needed and (vendor.aten is None or "flag_gems" not in vendor.aten.requires):
        return
    code = "import flag_gems; print('device', getattr(flag_gems, 'device', None))"
    child = run_python(code, SECONDS, vendor.environment)
    if child.code is None:
        yield unknown("FlagGems", f"`import flag_gems` is not done after {SECONDS} s")
    elif child.code and "No module named 'flag_gems'" in last_line(child.errors):
        yield _of_missing(configuration)
    elif child.code:
        remedy = "check the driver (FlagGems asks it for its device), GEMS_VENDOR, and the rows about pins"
        yield problem("FlagGems", f"cannot be imported: {last_line(child.errors)}", remedy)
    else:
        yield _of_device(last_line(child.output).removeprefix("device "), vendor.device_type)


def _of_missing(configuration: Configuration) -> Finding:
    """Judge that FlagGems is missing: no problem where the vendor package offers it as an extra."""
    registry, settings = configuration.registry, configuration.settings
    package = next(found.distribution for found in registry.installed if found.vendor is registry.vendor)
    distribution = package.split()[0]
    extra = extra_of(distribution, "flag-gems")
    was_asked_for = settings.use_flaggems and settings.is_users("use_flaggems")
    if extra and not was_asked_for:
        text = f"not installed: an optional part of {distribution}"
        return ok("FlagGems", text, f"for its kernels: pip install '{distribution}[{extra}]'")
    return problem("FlagGems", "not installed, and the vendor's kernels need it", "pip install flag-gems")


def _of_device(found: str, wanted: str) -> Finding:
    if found == wanted:
        return ok("FlagGems", f"imports, for {found}")
    remedy = "set GEMS_VENDOR to the vendor's name as FlagGems spells it"
    return problem("FlagGems", f"works for the device {found!r}, and the vendor's is {wanted!r}", remedy)
