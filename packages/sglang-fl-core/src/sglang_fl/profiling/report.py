"""A profile as data for programs: ``--json``. ``docs/profile.md`` says what each key means."""

from typing import Any

from sglang_fl.profiling.profile import Profile
from sglang_fl.profiling.shares import Phase, aten_shares

__all__ = ["SCHEMA", "as_data"]

#: Goes up where a key changes its meaning or goes away; a new key is no change.
SCHEMA = 1
#: Digits of microseconds and of shares.
_US, _SHARE = 3, 6


def as_data(profile: Profile) -> dict[str, Any]:
    """Return what ``--json`` prints: numbers, texts, lists and objects."""
    return {
        "schema": SCHEMA,
        "model": profile.model,
        "arguments": list(profile.arguments),
        "request": vars(profile.request),
        "software": dict(profile.software),
        "device": profile.device,
        "device_type": profile.device_type,
        "clock": "device" if profile.is_device else "host",
        "ranks": profile.ranks,
        "outside_us": round(profile.outside_us, _US),
        "phases": [_phase(profile, phase) for phase in profile.phases],
    }


def _phase(profile: Profile, phase: Phase) -> dict[str, Any]:
    return {
        "phase": phase.name,
        "steps": phase.steps,
        "requests": round(phase.requests, _US),
        "tokens": round(phase.tokens, _US),
        "step_us": round(phase.step_us, _US),
        "busy_us": round(phase.busy_us, _US),
        "idle_us": round(phase.idle_us, _US),
        "between_us": round(phase.between_us, _US),
        "ours": round(phase.ours, _SHARE),
        "pieces": [
            {
                "who": share.piece.who.value,
                "what": share.piece.what,
                "us": round(share.us, _US),
                "share": round(share.share, _SHARE),
                "ops": [{"op": op, "us": round(us, _US)} for op, us in share.ops.items()],
            }
            for share in phase.shares
        ],
        "aten": [
            {"op": row.op, "who": row.who.value, "share": round(row.share, _SHARE)}
            for row in aten_shares(phase)
        ],
        "left": [
            {
                "what": each.what,
                "share": round(each.share, _SHARE),
                "largest_op": each.largest_op,
                "our_op": each.our_op,
            }
            for each in profile.left(phase)
        ],
    }
