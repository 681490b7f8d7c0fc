"""What this machine would run, as data: settings, vendors, ops, and the reasons behind one op."""

from typing import Any

from sglang_fl.ops import OPS
from sglang_fl.registry import installed_vendors
from sglang_fl.startup import configure

__all__ = ["env", "ops", "vendors", "why"]


def env() -> list[dict[str, Any]]:
    """Return each setting: variable, value, source, meaning."""
    return [vars(setting) for setting in configure().explain()]


def vendors() -> list[dict[str, Any]]:
    """Return each installed vendor: name, package, device type, availability and the reason.

    Works with a wrong configuration too: it asks for no setting.
    """
    return [
        {
            "vendor": installed.name,
            "package": installed.distribution,
            "device_type": installed.vendor.device_type if installed.vendor else None,
            "available": installed.is_available,
            "reason": installed.why_not or None,
        }
        for installed in installed_vendors()
    ]


def ops() -> list[dict[str, Any]]:
    """Return each op: what runs it here first, and the candidates after that."""
    return [
        {
            "op": name,
            "runs": resolution.candidates[0].id,
            "then": [impl.id for impl in resolution.candidates[1:]],
        }
        for name, resolution in configure().resolutions.items()
    ]


def why(op_name: str) -> dict[str, Any]:
    """Return an op's candidates in order and the reason of each implementation that is none.

    Raises
    ------
    SettingsError : no such op
    """
    configuration = configure()
    resolution = configuration.resolutions[configuration.registry.op(op_name).name]
    return {
        "op": op_name,
        "vendor": configuration.registry.vendor.name,
        "layer_2": configuration.settings.oot_enabled,
        "order": [str(token) for token in configuration.settings.policy.order(op_name)],
        "candidates": [
            {"id": impl.id, "kind": str(impl.kind), "target": impl.target} for impl in resolution.candidates
        ],
        "not": [
            {"what": skipped.what, "reason": skipped.reason}
            for skipped in (*resolution.skipped, *resolution.excluded)
        ],
        "contract": (OPS[op_name].reference.__doc__ or "").splitlines()[0],
    }
