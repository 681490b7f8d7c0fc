"""What this machine would run, as data: settings, vendors, ops, the reasons behind one op, coverage."""

import ast
import contextlib
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.version import InvalidVersion, Version

from sglang_fl.aten.plan import Decision, make_plan, offered_ops, plan_layer_1
from sglang_fl.dispatch.resolution import Skipped, walk
from sglang_fl.errors import SettingsError
from sglang_fl.ops import OPS
from sglang_fl.registry import is_in_force
from sglang_fl.registry.registry import reference_target
from sglang_fl.settings import Settings
from sglang_fl.settings.contradictions import why_no_layer_1
from sglang_fl.sglang_adapter import releases, seams
from sglang_fl.sglang_adapter.installed_plugins import installed_claims
from sglang_fl.sglang_adapter.layer_lists import LayerLists, layer_lists
from sglang_fl.sglang_adapter.source import PLUGIN_METHOD
from sglang_fl.startup import Configuration, configure, simulate, usable_vendors
from sglang_fl.vendor import BackendKind, OpImpl, why_no_target
from sglang_fl.vendor.targets import module_source

if TYPE_CHECKING:
    from sglang_fl.sglang_adapter.coverage import Coverage

__all__ = [
    "aten_ops",
    "coverage",
    "env",
    "ops",
    "vendors",
    "why",
    "why_aten_is_off",
    "why_layer_2_is_off",
]


def _configure() -> tuple[Configuration, LayerLists]:
    """Check all settings, as a start would."""
    configuration = configure()
    plan_layer_1(configuration)
    return configuration, layer_lists(configuration.settings)


def env() -> list[dict[str, Any]]:
    """Return each setting: variable, value, source, meaning."""
    configuration, _ = _configure()
    return [vars(setting) for setting in configuration.explain()]


def vendors() -> list[dict[str, Any]]:
    """Return each installed vendor: name, package, device type, availability and the reason.

    Works with a wrong configuration too: of the settings it asks only for a chip to simulate.
    """
    with contextlib.suppress(SettingsError):
        simulate(Settings.read())
    return [
        {
            "vendor": installed.name,
            "package": installed.distribution,
            "device_type": installed.vendor.device_type if installed.vendor else None,
            "available": installed.is_available,
            "reason": installed.why_not or None,
        }
        for installed in usable_vendors()
    ]


def ops() -> list[dict[str, Any]]:
    """Return each op: what runs it here first, and the candidates after that.

    Where SGLang runs an op itself, the reason stands in the place of the candidates. An implementation whose
    target does not exist would fail in its first call; it is named under ``not_found``.
    """
    configuration, lists = _configure()
    rows = []
    for name in OPS:
        off = why_layer_2_is_off() or lists.why_op_left_out(name)
        walked = None if off else walk(name, configuration.registry, configuration.settings.policy)
        if walked and walked.sglang_first:
            off = walked.sglang_first
        impls, missing = _found(walked.candidates) if walked and not off else ([], [])
        ids = ["sglang", off] if off else [impl.id for impl in impls] or ["nothing"]
        rows.append({"op": name, "runs": ids[0], "then": ids[1:], "not_found": [str(m) for m in missing]})
    return rows


def _found(candidates: Iterable[OpImpl]) -> tuple[list[OpImpl], list[Skipped]]:
    """Divide candidates into those whose target exists, and the others with what is missing."""
    impls, missing = [], []
    for impl in candidates:
        is_core = impl.kind is BackendKind.REFERENCE  # they are there: reading them all would take longest
        reason = None if is_core else why_no_target(impl.target)
        if reason is None:
            impls.append(impl)
        else:
            missing.append(Skipped(impl.id, f"its target {impl.target} does not exist: {reason}"))
    return impls, missing


def aten_ops() -> list[dict[str, Any]]:
    """Return each ATen op that the vendor has a kernel for: whether that runs, and why or why not.

    No kernel library is imported.
    """
    configuration = configure()
    settings, vendor = configuration.settings, configuration.registry.vendor
    off = why_aten_is_off()
    if off:
        decisions = [Decision(op, is_replaced=False, reason=off) for op in offered_ops(vendor)]
    else:
        decisions = list(make_plan(settings, vendor).decisions)
    return [
        {
            "op": decision.op.overload,
            "kernel": decision.op.name,
            "replaced": decision.is_replaced,
            "reason": decision.reason,
        }
        for decision in decisions
    ]


def why_aten_is_off() -> str | None:
    """Say why no ATen op is replaced, or None."""
    configuration = configure()
    return why_no_layer_1(configuration.settings, configuration.registry.vendor)


def why_layer_2_is_off() -> str | None:
    """Say why SGLang runs all its fused layers itself, or None where layer 2 is on."""
    if not configure().settings.oot_enabled:
        return "SGLANG_FL_OOT_ENABLED=0"
    try:
        text = metadata.version("sglang")
        version = Version(text)
    except metadata.PackageNotFoundError:
        return None  # what would run once it is installed
    except (InvalidVersion, TypeError):
        return f"the version of the installed SGLang cannot be compared: {text!r}"
    return None if seams.seam_of(version) else seams.why_unsupported(version)


def why(op_name: str) -> dict[str, Any]:
    """Return an op's candidates in order and the reason of each implementation that is none.

    Raises
    ------
    SettingsError : no such op, or what was asked for it is not available here
    """
    configuration, lists = _configure()
    policy = configuration.settings.policy
    resolution = walk(configuration.registry.check_name(op_name), configuration.registry, policy)
    contract = _contract(op_name)
    candidates, missing = _found(resolution.candidates)
    return {
        "op": op_name,
        "vendor": configuration.registry.vendor.name,
        "layer_2": why_layer_2_is_off() or lists.why_op_left_out(op_name) or "on",
        "order": [str(token) for token in policy.order(op_name)],
        "sglang_first": resolution.sglang_first,
        "candidates": [{"id": impl.id, "kind": str(impl.kind), "target": impl.target} for impl in candidates],
        "not": [
            {"what": skipped.what, "reason": skipped.reason}
            for skipped in (*missing, *resolution.skipped, *resolution.excluded)
        ],
        "quarantine": [
            {
                "id": entry.impl,
                "reason": str(entry),
                "state": _state(op_name in policy.lifted, is_in_force(entry)),
                "reproduction": entry.reproduction,
            }
            for entry in configuration.registry.vendor.quarantine
            if entry.op == op_name
        ],
        "contract": (ast.get_docstring(contract) or "").partition("\n")[0],
        "signature": f"{op_name}({ast.unparse(contract.args)})",
    }


def _contract(op_name: str) -> ast.FunctionDef:
    """Return an op's reference as its source has it; importing it would import PyTorch."""
    module, _, function = reference_target(op_name).partition(":")
    source = module_source(module)
    assert source is not None
    return next(n for n in source.body if isinstance(n, ast.FunctionDef) and n.name == function)


def _state(lifted: bool, in_force: bool) -> str:
    if not in_force:
        return "the installed version is not concerned"
    return "lifted by the user" if lifted else "in force"


def coverage() -> dict[str, list[dict[str, Any]]]:
    """Return ``layer_classes``, ``shortcuts`` and ``kernel_plugins``.

    The first is each fused layer class of the installed SGLang, with its ops, or why it has none: SGLang's
    source is read, not imported. The second is SGLang's paths past these layers, in all supported releases.
    The third is what installed kernel plugins take.

    Raises
    ------
    SettingsError : SGLang is not installed
    """
    # Its adapters know the ops, which import PyTorch; the listings above need neither.
    from sglang_fl.sglang_adapter import coverage as sglang_coverage

    found = sglang_coverage.coverage(_sglang())
    classes = [
        {
            "layer_class": layer.layer_class.removeprefix("sglang."),
            "ops": list(layer.ops),
            "left_to_sglang": None if layer.ops else layer.reason or "unknown to this version of sglang-fl",
        }
        for layer in found
    ]
    return {
        "layer_classes": classes,
        "shortcuts": _shortcuts(),
        "kernel_plugins": _kernel_plugins(found),
    }


def _kernel_plugins(classes: list["Coverage"]) -> list[dict[str, Any]]:
    rows = [vars(claim) for claim in installed_claims()]
    of_sglang = [layer.layer_class for layer in classes if layer.has_plugin_backend]
    return rows + [
        {"plugin": "one that SGLang does not name", "what": name.rpartition(":")[2], "how": PLUGIN_METHOD}
        for name in of_sglang
    ]


def _shortcuts() -> list[dict[str, Any]]:
    from sglang_fl.sglang_adapter.shortcuts import DIRECT_CALLS, SHORTCUTS

    rows = [
        {
            "shortcut": shortcut.name if shortcut.watch else f"{shortcut.name} (not in the log)",
            "past": list(shortcut.ops),
            "where": shortcut.target.removeprefix("sglang.srt."),
            "taken": shortcut.condition,
            "off_where_the_op_is_named": shortcut.off,
            "releases": str(shortcut.releases),
            "wrong": _fault_of(shortcut.target),
        }
        for shortcut in SHORTCUTS
    ]
    rows += [
        {
            "shortcut": "direct call (not in the log)",
            "past": [call.op],
            "where": call.owner.removeprefix("sglang.srt."),
            "taken": call.condition,
            "off_where_the_op_is_named": "no way: the start is refused",
            "releases": str(call.releases),
            "wrong": None,
        }
        for call in DIRECT_CALLS
    ]
    return rows


def _fault_of(target: str) -> str | None:
    """Say in which releases SGLang's kernel behind a shortcut is wrong, so that it is turned off there."""
    from sglang_fl.sglang_adapter.kernel_faults import KERNEL_FAULTS

    found = [f"{fault.releases} {fault.what}" for fault in KERNEL_FAULTS if fault.target == target]
    return f"that of {'; that of '.join(found)}; off there, the layers run" if found else None


def _sglang() -> Path:
    """Return the folder of the installed SGLang."""
    found = seams.sglang_folder()
    if found is None:
        raise SettingsError(f"SGLang is not installed here. Install sglang {releases.supported_range()}.")
    return found
