"""The dispatch log is empty: is layer 2 on, and can its log be written?"""

from collections.abc import Iterator

from sglang_fl.diagnostics.doctor.configured import configured
from sglang_fl.diagnostics.doctor.finding import Finding, ok, problem
from sglang_fl.diagnostics.doctor.launch import Launch
from sglang_fl.diagnostics.doctor.writable import why_no_file, why_no_folder
from sglang_fl.errors import SglangFlError
from sglang_fl.ops import OPS
from sglang_fl.settings import Settings, SglangSettings
from sglang_fl.sglang_adapter.layer_lists import layer_lists
from sglang_fl.sglang_adapter.releases import FORCED_BACKEND

__all__ = ["dispatch_log", "kept_calls", "layer_2"]


def layer_2(launch: Launch) -> Iterator[Finding]:
    """Is any layer class dispatched?"""
    configuration = configured()
    if configuration is None:
        return
    settings = configuration.settings
    forced = SglangSettings.read().force_fused_op_backend
    if forced:
        yield problem(
            "layer 2",
            f"SGLANG_FORCE_FUSED_OP_BACKEND={forced!r} takes layers from the plugin ({FORCED_BACKEND})",
            "unset it",
        )
    if not settings.oot_enabled:
        yield _off(settings, f"{settings.title('oot_enabled')}=0 switches it off", "unset it, or set it to 1")
    elif _leaves_out_all(settings):
        yield _off(settings, "the lists leave every layer class to SGLang", "correct SGLANG_FL_OOT_WHITELIST")
    else:
        yield ok("layer 2", "on", "`sglang-fl ops` tells what runs each op")


def _off(settings: Settings, text: str, remedy: str) -> Finding:
    """Off is what somebody wants who looks for a guilty kernel; it is wrong where lines are expected."""
    if settings.dispatch_log is None:
        return ok("layer 2", f"{text}: SGLang runs its own layers", remedy)
    return problem("layer 2", f"{text}, so the dispatch log stays empty", remedy)


def _leaves_out_all(settings: Settings) -> bool:
    try:
        lists = layer_lists(settings)
    except SglangFlError:  # told by the check of the settings
        return False
    return all(lists.why_op_left_out(name) for name in OPS)


def dispatch_log(launch: Launch) -> Iterator[Finding]:
    """Is a dispatch log asked for, and can it be written?"""
    configuration = configured()
    if configuration is None:
        return
    settings = configuration.settings
    path = settings.dispatch_log
    if path is None:
        yield ok(
            "dispatch log", "none is kept", "set SGLANG_FL_DISPATCH_LOG=FILE to see what runs each layer"
        )
        return
    reason = why_no_file(path)
    if reason:
        remedy = "name a file in an existing, writable folder"
        yield problem(
            "dispatch log", f"{settings.quoted('dispatch_log')} cannot be written: {reason}", remedy
        )
    elif path.is_file() and not path.stat().st_size:
        remedy = "send a request: a layer class is logged when it runs for the first time"
        yield ok("dispatch log", f"{path} is writable, and empty so far", remedy)
    else:
        yield ok("dispatch log", f"{path} can be written")


def kept_calls(launch: Launch) -> Iterator[Finding]:
    """Can calls be kept in the folder that is named for them? Where none is named there is nothing to say."""
    configuration = configured()
    if configuration is None or configuration.settings.keep_calls is None:
        return
    settings, folder = configuration.settings, configuration.settings.keep_calls
    reason = why_no_folder(folder)
    if reason:
        text = f"{settings.quoted('keep_calls')} cannot be written: {reason}"
        yield problem("kept calls", text, "name a folder, in a folder that can be written")
    else:
        yield ok("kept calls", f"{folder} can be written")
