"""SGLang's entry points. Whatever goes wrong here ends the process with one message and code 2.

SGLang logs what a plugin raises and goes on without it; a server that runs half a plugin is the
worst outcome, so nothing is left to that.
"""

import atexit
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sglang_fl.aten import Plan, free_ops, plan_layer_1
from sglang_fl.aten.layer_1 import Layer1
from sglang_fl.aten.record_log import AtenRecord, Recording
from sglang_fl.dispatch.kept_calls import CallFolder, KeptCalls
from sglang_fl.dispatch.layer_2_calls import marked
from sglang_fl.dispatch.live_check import LiveCheck
from sglang_fl.errors import SettingsError, SglangFlError, VendorError
from sglang_fl.logs import counters
from sglang_fl.logs.compile_monitor import CompileMonitor
from sglang_fl.logs.dispatch_log import DispatchLog
from sglang_fl.logs.redaction import redacted
from sglang_fl.logs.shared_file import check_appendable
from sglang_fl.ops import Kernel, Op
from sglang_fl.registry.cpu import CPU
from sglang_fl.settings import (
    ATTENTION,
    Settings,
    SglangSettings,
    aten_calls_folder,
    bench_folder,
    is_launcher,
    prepare_environment,
    profile_folder,
    room_for_calls,
)
from sglang_fl.sglang_adapter.layer_lists import LayerLists, layer_lists, named_ops
from sglang_fl.sglang_adapter.releases import FORCED_BACKEND
from sglang_fl.sglang_adapter.seams import Seam, installed_version, seam_of, why_unsupported
from sglang_fl.startup import Configuration, configure, inform_user, warn_user
from sglang_fl.vendor import OpImpl, Vendor, load_target

__all__ = ["activate_platform", "load_plugin"]

logger = logging.getLogger(__name__)

#: Imported in every process that runs a model.
MODEL_RUNNER = "sglang.srt.model_executor.model_runner"
_has_loaded = False


@contextmanager
def _exit_on_error() -> Iterator[None]:
    try:
        yield
    except SglangFlError as error:
        for line in str(error).splitlines():
            print(redacted(f"sglang-fl: {line}"), file=sys.stderr)  # noqa: T201 - no log is configured yet
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
        if path is None:
            atexit.register(_warn_where_never_loaded)
        selected = SglangSettings.read().platform
        if path is None and selected == "sglang_fl":
            raise SettingsError(
                f"SGLANG_PLATFORM={selected!r}: on this device SGLang's own platform stays active. "
                f"Unset it; to choose the vendor, set SGLANG_FL_PLATFORM."
            )
        if path is not None:
            _require_platform(path, configure().registry.vendor)
        return path


def _require_platform(path: str, vendor: Vendor) -> None:
    """Import the platform, as SGLang will at once, so that its fault is reported with the vendor's name."""
    module, _, name = path.rpartition(".")
    if "sglang.srt.platforms" not in sys.modules:
        return  # somebody else asks: importing the platform would bring in SGLang, which would ask us again
    try:
        found = load_target(f"{module}:{name}")
    except Exception as error:
        fault = f"{type(error).__name__}: {error}"
        raise VendorError(f"vendor {vendor}: its platform {path!r} cannot be imported: {fault}") from error
    if not isinstance(found, type):
        raise VendorError(f"vendor {vendor}: its platform {path!r} is no class")


def _platform(configuration: Configuration) -> str | None:
    vendor = configuration.registry.vendor
    simulated = _simulated_platform(configuration)
    if simulated is not None:
        return simulated
    if vendor.device_type == "cpu" and (
        torch.accelerator.is_available() or SglangSettings.read().use_cpu_engine == "1"
    ):
        return None  # the device is not a plain CPU, and SGLang has a platform for it
    if vendor.device_type == "cpu":
        return vendor.platform or CPU.platform
    return None if vendor.platform is None or _is_in_tree(vendor.device_type) else vendor.platform


def _simulated_platform(configuration: Configuration) -> str | None:
    """Return the platform of the chip that is simulated, where it brings one."""
    if configuration.settings.simulated is None:
        return None
    from sglang_fl.conformance.simulated import loaded_chip

    chip = loaded_chip()
    return chip.platform if chip else None


def _is_in_tree(device_type: str) -> bool:
    from sglang_fl.sglang_adapter import seams

    return seams.has_platform(device_type)


def _warn_where_never_loaded() -> None:
    """Warn at the end of a process that has run a model and in which SGLang loaded no plugins.

    Our own platforms load them there. Where SGLang has a platform itself, nothing of ours is called later.
    """
    if MODEL_RUNNER in sys.modules and not _has_loaded:
        logger.warning(
            "sglang-fl was not loaded in this process (%s), in which SGLang loads no plugins: every op was "
            "SGLang's own",
            Path(sys.argv[0]).name,
        )


def load_plugin() -> None:
    """Hook layer 2, and in a process that runs a model layer 1, into SGLang.

    Raises
    ------
    SystemExit : code 2, on a wrong configuration or where SGLang has no seam for us
    """
    global _has_loaded
    _has_loaded = True
    with _exit_on_error():
        configuration = configure()
        from sglang_fl.sglang_adapter import llama4, server_args
        from sglang_fl.sglang_adapter.attention.offer import offer
        from sglang_fl.sglang_adapter.speculation.install import install as install_speculation
        from sglang_fl.sglang_adapter.without_triton import names

        server_args.accept_former_flags()
        offer(installed_version(), guard=_exit_on_error)
        names.install(installed_version(), guard=_exit_on_error)
        llama4.install(installed_version(), guard=_exit_on_error)
        install_speculation(installed_version(), guard=_exit_on_error)
        folder = bench_folder()
        if folder is not None:
            from sglang_fl.bisect.bench import install_bench

            install_bench(configuration, folder, check=_require_hooked)
            return
        layers = _Layers(configuration, layer_lists(configuration.settings), plan_layer_1(configuration))
        _announce(layers)
        _check_logs(configuration.settings)
        is_watched = profile_folder() is not None or aten_calls_folder() is not None
        if layers.has_layer_1 or layers.has_layer_2 or is_watched:
            _install(layers)


@dataclass(frozen=True)
class _Layers:
    """What was asked for in this process."""

    configuration: Configuration
    lists: LayerLists
    plan: Plan | None

    @property
    def has_layer_1(self) -> bool:
        return self.plan is not None

    @property
    def has_layer_2(self) -> bool:
        return self.configuration.settings.oot_enabled


def _announce(layers: _Layers) -> None:
    """Log the banner, also where all layers are off; an unsupported SGLang gets a warning instead.

    Only the process that the user started has one, and only it imports what the banner needs.
    """
    version = installed_version()
    if not is_launcher() or not seam_of(version):
        return
    from sglang_fl.diagnostics.banner import banner
    from sglang_fl.sglang_adapter import log_ready

    text = banner(layers.configuration, layers.plan, version)
    log_ready.when_log_is_ready(lambda: inform_user(text))


def _install(layers: _Layers) -> None:
    configuration = layers.configuration
    version = installed_version()
    seam = seam_of(version)
    if seam is None:
        _leave_unsupported(why_unsupported(version), configuration)
        return
    prepare_environment(configuration.registry.vendor)
    record: Recording | None = _open_record(configuration.settings) if layers.has_layer_1 else None
    if profile_folder() is not None:
        from sglang_fl.profiling.ranges import AtenRanges

        record = AtenRanges(record)
    if layers.has_layer_2:
        has_record = record is not None or aten_calls_folder() is not None
        _install_layer_2(layers, seam, has_record)
    _install_in_scheduler(layers, record)


def _wrap(
    live: LiveCheck | None, has_record: bool, kept: KeptCalls | None
) -> Callable[[Op, OpImpl, Any, Kernel], Kernel] | None:
    """Return what is put around kernels: a mark for the record of layer 1, what keeps and what checks calls.

    Mostly nothing. For ``sglang-fl profile`` a range, next to the kernel.
    """
    if live is None and not has_record and kept is None:
        return None
    mark = _mark_for_profile()

    def wrap(op: Op, impl: OpImpl, layer: Any, kernel: Kernel) -> Kernel:
        if mark is not None:
            kernel = mark(op, impl, layer, kernel)
        if has_record:
            kernel = marked(kernel)
        if kept is not None:
            kernel = kept.wrap(op, impl, layer, kernel)
        return kernel if live is None else live.wrap(op, layer, kernel)

    return wrap


def _mark_for_profile() -> Callable[[Op, OpImpl, Any, Kernel], Kernel] | None:
    if profile_folder() is None:
        return None
    from sglang_fl.profiling.ranges import mark_kernel

    return mark_kernel


def _install_layer_2(layers: _Layers, seam: Seam, has_record: bool) -> None:
    from sglang_fl.sglang_adapter import hook, loaded_models, log_ready
    from sglang_fl.sglang_adapter.attention import observed

    configuration = layers.configuration
    named = named_ops(configuration.settings)
    if installed_version() in FORCED_BACKEND:
        _heed_forced_backend(named)
    _warn_of_references(configuration)
    log = _open_log(configuration.settings)
    settings, vendor = configuration.settings, configuration.registry.vendor
    live = None
    if settings.verify:
        live = LiveCheck(settings.verify, settings.verify_rate.denominator, vendor.device_type)
        log_ready.when_log_is_ready(lambda: inform_user(str(live)))
    wrap = _wrap(live, has_record, _open_kept_calls(settings))
    layer_hook = hook.LayerHook(configuration.resolutions, log, layers.lists, wrap)
    models = loaded_models.LoadedModels(named, log, installed_version(), _shortcut_ranges())

    def settle(runner: Any) -> None:
        with _exit_on_error():
            models.settle(runner.model)
            if live is not None:
                live.learn_names(runner.model)
                if ATTENTION in settings.verify:
                    observed.check_calls(runner, live.check, live.name_by_backend)
            observed.tell_of_backend(runner, log)

    hook.install(seam, layer_hook, when_applied=lambda: _require_hooked(seam, layer_hook), when_loaded=settle)


def _shortcut_ranges() -> Callable[[str, Callable[..., Any]], Callable[..., Any]] | None:
    if profile_folder() is None:
        return None
    from sglang_fl.profiling.ranges import mark_shortcut

    return mark_shortcut


def _recorder(device_type: str) -> Callable[[Any], None] | None:
    """Return what gives a scheduler the recorder of ``sglang-fl profile``; None where nobody profiles."""
    folder = profile_folder()
    if folder is None:
        return None
    from sglang_fl.profiling.recorder import Recorder

    return Recorder(folder, device_type).attach


def _aten_watch(settings: Settings, vendor: Vendor) -> Callable[[Any], None] | None:
    """Return what keeps the calls of ATen ops that a scheduler makes, for ``sglang-fl tune``; mostly None."""
    folder = aten_calls_folder()
    if folder is None:
        return None
    from sglang_fl.aten.recorded_calls import CallMode, watch_batches

    calls = CallFolder(folder, (room_for_calls() or 0) << 20)
    return watch_batches(CallMode(free_ops(settings, vendor), vendor.device_type, calls))


def _install_in_scheduler(layers: _Layers, record: Recording | None) -> None:
    """Have layer 1 registered once the weights are loaded, and compilations watched from then on."""
    from sglang_fl.sglang_adapter import scheduler

    settings, vendor = layers.configuration.settings, layers.configuration.registry.vendor
    layer_1 = Layer1(settings, vendor, layers.plan, record) if layers.plan else None
    monitor = CompileMonitor(vendor.device_type)
    watching = [_recorder(vendor.device_type), _aten_watch(settings, vendor)]

    def models_loaded(scheduler: Any) -> None:
        with _exit_on_error():
            if SglangSettings.read().has_metrics:
                counters.enable()
            monitor.watch()
            if layer_1:
                layer_1.register()
            for watch in filter(None, watching):
                watch(scheduler)

    scheduler.install(models_loaded, monitor.expect_none, check=_require_hooked)


def _require_hooked(seam: Seam, hooked: Callable[..., Any]) -> None:
    with _exit_on_error():
        seam.require_hooked(hooked)


def _heed_forced_backend(named: dict[str, str]) -> None:
    """Refuse SGLang's own force together with an op that the user named; warn of it otherwise."""
    forced = SglangSettings.read().force_fused_op_backend
    if not forced:
        return
    for op, title in named.items():
        raise SettingsError(
            f"SGLANG_FORCE_FUSED_OP_BACKEND={forced!r} takes every layer from the plugin, and {title} names "
            f"{op}. Unset one."
        )
    warn_user(
        f"SGLANG_FORCE_FUSED_OP_BACKEND={forced!r}: layers that have this backend are SGLang's; the dispatch "
        f"log does not show them"
    )


def _leave_unsupported(reason: str, configuration: Configuration) -> None:
    if configuration.settings.per_op:
        raise SettingsError(
            f"{configuration.settings.title('per_op')} is set, but {reason}: layer 2 cannot be switched on"
        )
    warn_user(f"{reason}: sglang-fl stays off, every op runs as SGLang chooses")


def _warn_of_references(configuration: Configuration) -> None:
    """On a chip the references are right, but slow, and rarely meant."""
    if configuration.registry.vendor.device_type != "cpu" or not torch.accelerator.is_available():
        return
    chosen = configuration.settings.platform
    cause = configuration.settings.quoted("platform") if chosen else "no vendor package for it is available"
    device = torch.accelerator.current_accelerator()
    warn_user(f"fused ops run their references on the {device} device: {cause} (see `sglang-fl vendors`)")


def _check_logs(settings: Settings) -> None:
    """Refuse a log that cannot be written, also where nothing will be: it is wrong all the same."""
    for name in ("dispatch_log", "flaggems_log_path"):
        path = getattr(settings, name)
        if path is not None:
            with _writable(settings, name):
                check_appendable(path)


def _open_log(settings: Settings) -> DispatchLog:
    with _writable(settings, "dispatch_log"):
        return DispatchLog(settings.dispatch_log)


def _open_kept_calls(settings: Settings) -> KeptCalls | None:
    if settings.keep_calls is None:
        return None
    try:
        room = room_for_calls()
        most = {} if room is None else {"most": room << 20}
        return KeptCalls(settings.keep_calls, settings.keep_calls_each, **most)
    except OSError as error:
        raise SettingsError(
            f"{settings.quoted('keep_calls')}: no folder that can be written ({error.strerror}). Valid: a "
            f"folder, or a name for one, in a folder that can be written."
        ) from error


def _open_record(settings: Settings) -> AtenRecord | None:
    """Return the record of ATen ops, or None where none is to be made."""
    if not settings.flaggems_record or settings.flaggems_log_path is None:
        return None
    with _writable(settings, "flaggems_log_path"):
        return AtenRecord(settings.flaggems_log_path, settings.flaggems_log_once)


@contextmanager
def _writable(settings: Settings, name: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SettingsError(
            f"{settings.quoted(name)}: the file cannot be opened for "
            f"appending ({error.strerror}). Valid: a file in an existing, writable folder."
        ) from error
