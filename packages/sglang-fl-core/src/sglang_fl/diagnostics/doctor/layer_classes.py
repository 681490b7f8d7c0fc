"""A ``forward_cuda`` error on another chip: which layer classes are not ours there, and what helps."""

from collections.abc import Iterator

from sglang_fl.diagnostics.doctor.configured import configured
from sglang_fl.diagnostics.doctor.finding import Finding, ok, problem
from sglang_fl.diagnostics.doctor.launch import Launch
from sglang_fl.errors import SglangFlError
from sglang_fl.sglang_adapter.coverage import Coverage, coverage
from sglang_fl.sglang_adapter.layer_lists import layer_lists
from sglang_fl.sglang_adapter.layers import ADAPTERS
from sglang_fl.sglang_adapter.releases import FORCED_BACKEND
from sglang_fl.sglang_adapter.seams import sglang_folder
from sglang_fl.startup import Configuration
from sglang_fl.vendor import BackendKind, is_installed

__all__ = ["layer_classes", "operators"]

#: On a plain CPU our platform has SGLang run ``forward_native``; on CUDA ``forward_cuda`` is right.
_AT_HOME = ("cpu", "cuda")


def operators(launch: Launch) -> Iterator[Finding]:
    """Which ops have no kernel on this chip, so that SGLang's own path, ``forward_cuda``, may run?"""
    configuration = configured()
    if configuration is None or configuration.registry.vendor.device_type in _AT_HOME:
        return
    vendor = configuration.registry.vendor
    left = list(_left_out(configuration))
    if not left and not configuration.settings.oot_enabled:
        text = f"layer 2 is off: on {vendor.device_type} SGLang runs its own paths"
        left = [problem("ops", text, "unset SGLANG_FL_OOT_ENABLED")]
    yield from left
    bare = _without_kernel(configuration)
    if bare:
        yield _of_bare(configuration, bare)
    elif not left:
        yield ok("ops", f"each has a kernel of vendor {vendor}")


def _without_kernel(configuration: Configuration) -> list[str]:
    """Return the ops for which the vendor has no kernel that could run here."""
    return [
        name
        for name, resolution in configuration.resolutions.items()
        if all(impl.kind is BackendKind.REFERENCE for impl in resolution.candidates)
    ]


def _of_bare(configuration: Configuration, names: list[str]) -> Finding:
    """Say what runs these ops: something always does, so that this is no problem."""
    vendor = configuration.registry.vendor
    runs = "the reference runs (slow)"
    if vendor.platform is None and any(configuration.resolutions[name].prefers_sglang for name in names):
        runs = f"SGLang's own path for {vendor.device_type} runs where it has one, else the reference (slow)"
    missing = {
        module
        for name in names
        for impl in configuration.registry.implementations(name)
        for module in impl.requires
        if not is_installed(module)
    }
    remedy = f"for the vendor's kernels install {', '.join(sorted(missing))}" if missing else ""
    count = "1 op" if len(names) == 1 else f"{len(names)} ops"
    return ok("ops", f"{count} without a kernel of {vendor}: {runs}: {', '.join(names)}", remedy)


def _left_out(configuration: Configuration) -> Iterator[Finding]:
    try:
        lists = layer_lists(configuration.settings)
    except SglangFlError:  # told by the check of the settings
        return
    for name in configuration.resolutions:
        reason = lists.why_op_left_out(name)
        if reason:
            text = f"left to SGLang, whose path may be made for CUDA: {_classes_of(name)} ({reason})"
            yield problem(f"op {name}", text, f"take {name} and its layer classes off that list, or on it")


def _classes_of(op_name: str) -> str:
    """Return the names of the layer classes that an op computes."""
    found = [path for path, adapters in ADAPTERS.items() if any(a.op.name == op_name for a in adapters)]
    return ", ".join(sorted({path.rpartition(":")[2] for path in found}))


def layer_classes(launch: Launch) -> Iterator[Finding]:
    """Which fused layer classes of the installed SGLang have no adapter?"""
    configuration = configured()
    package = sglang_folder()
    if configuration is None or package is None:
        return
    found = coverage(package)
    bare = [layer for layer in found if not layer.ops]
    device = configuration.registry.vendor.device_type
    what = "layer classes"
    text = f"{len(found) - len(bare)} of {len(found)} have an adapter"
    if device in _AT_HOME:
        yield ok(what, f"{text}; the rest is SGLang's", "`sglang-fl coverage` lists them")
        return
    switch = f"SGLANG_FORCE_FUSED_OP_BACKEND=torch (SGLang's own switch, {FORCED_BACKEND})"
    text += f"; a model with one of these runs SGLang's path on {device}: {_names(bare)}"
    yield ok(what, text, f"{switch} runs all in plain PyTorch")


def _names(layers: list[Coverage]) -> str:
    return ", ".join(sorted(layer.layer_class.rpartition(":")[2] for layer in layers))
