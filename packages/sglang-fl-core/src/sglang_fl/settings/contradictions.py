"""Settings that are right by themselves, but not together: refused, or without effect."""

import itertools
from collections.abc import Iterator

from sglang_fl.errors import SettingsError, choices, few, quoted
from sglang_fl.logs.shared_file import is_same_file
from sglang_fl.ops import OPS
from sglang_fl.settings import ATTENTION, Settings
from sglang_fl.settings.policy import SGLANG
from sglang_fl.settings.sources import EXCLUSIVE
from sglang_fl.vendor import Vendor

__all__ = [
    "FILES",
    "LOGS",
    "refuse_contradictions",
    "refuse_one_file_for_two",
    "why_no_layer_1",
    "without_effect",
]

#: The settings that are of layer 2 alone.
LAYER_2 = (
    *("per_op", *EXCLUSIVE[0], "prefer", "strict", "allow_vendors", "deny_vendors"),
    *("verify", "verify_rate", "dispatch_log", "keep_calls", "keep_calls_each"),
)
#: The settings that name a file, and those of them whose file is written.
LOGS = ("dispatch_log", "flaggems_log_path", "simulated_record")
FILES = ("config", *LOGS)


def refuse_contradictions(settings: Settings) -> None:
    """Refuse settings that cannot hold together.

    Raises
    ------
    SettingsError : both lists of a pair, a vendor both allowed and denied, an order that names the
        kernels of a vendor that is denied, a ``!`` before what is no op, a record without a file, a file
        with two purposes; one line for each
    """
    found = [
        *_both_lists(settings),
        *_both_filters(settings),
        *_denied(settings),
        *_wrong_lifts(settings),
        *_no_file(settings),
        *_same_files(settings),
    ]
    if found:
        raise SettingsError("\n".join(found))


def _both_lists(settings: Settings) -> Iterator[str]:
    for white, black in EXCLUSIVE:
        if getattr(settings, white).names and getattr(settings, black).names:
            yield f"{settings.quoted(white)} and {settings.quoted(black)} exclude each other. Keep one."


def _both_filters(settings: Settings) -> Iterator[str]:
    pair = f"{settings.quoted('allow_vendors')} and {settings.quoted('deny_vendors')}"
    names = sorted(set(settings.allow_vendors) & set(settings.deny_vendors))
    yield from few(names, lambda name: f"{pair}: the vendor {name!r} cannot be both allowed and denied.")


def _denied(settings: Settings) -> Iterator[str]:
    policy = settings.policy
    for op_name, order in settings.per_op.items():
        for vendor in dict.fromkeys(token.vendor for token in order if token.vendor):
            reason = policy.why_denied(vendor)
            if reason:
                asked = f"{op_name}={'|'.join(map(str, order))}"
                yield f"{settings.title('per_op')}: {quoted(asked)} is not available: {reason}."


def _wrong_lifts(settings: Settings) -> Iterator[str]:
    for name in EXCLUSIVE[0]:
        wrong = [op_name for op_name in getattr(settings, name).lifted if op_name not in OPS]
        title = settings.quoted(name)
        yield from (f"{title}: {line}" for line in few(wrong, _no_such_op))


def _no_such_op(name: str) -> str:
    return f"there is no op {quoted(name)}. {choices(name, OPS)}"


def _no_file(settings: Settings) -> Iterator[str]:
    if settings.use_flaggems and settings.flaggems_record and settings.flaggems_log_path is None:
        log_path = settings.title("flaggems_log_path")
        yield f"{settings.quoted('flaggems_record')}: {log_path} names no file for the record. Set it."


def refuse_one_file_for_two(settings: Settings) -> None:
    """Refuse a log that would be written into the settings, or into another log, before any is opened.

    Raises
    ------
    SettingsError : one line for each pair
    """
    found = list(_same_files(settings))
    if found:
        raise SettingsError("\n".join(found))


def _same_files(settings: Settings) -> Iterator[str]:
    files = [name for name in FILES if getattr(settings, name) is not None]
    for one, other in itertools.combinations(files, 2):
        if is_same_file(getattr(settings, one), getattr(settings, other)):
            yield f"{settings.quoted(one)} and {settings.quoted(other)} are the same file. Name two."


def without_effect(settings: Settings, vendor: Vendor) -> list[str]:
    """Say which settings of the user do nothing, and why: at most one line for each reason."""
    lists, log = EXCLUSIVE[1], ("flaggems_log_path",)
    complaints: list[str] = []
    absence = why_no_layer_1(settings, vendor)
    if absence:
        record = ("flaggems_record", *log) if settings.flaggems_record else ()
        complaints += _told(settings, ("use_flaggems", *lists, *record), absence)
    if not settings.flaggems_record:
        off = f"{settings.title('flaggems_record')} is not 1"
        complaints += _told(settings, (*log, "flaggems_log_once"), off)
    if not settings.oot_enabled:
        off = f"{settings.title('oot_enabled')}=0 switches layer 2 (fused ops) off"
        complaints += _told(settings, LAYER_2, off)
    elif not settings.verify:
        complaints += _told(settings, ("verify_rate",), f"{settings.title('verify')} names no op")
    else:
        complaints += _not_verified(settings)
    if settings.oot_enabled and settings.prefer == SGLANG and not settings.per_op:
        off = f"{settings.quoted('prefer')} leaves every op to SGLang"
        complaints += _told(settings, (*EXCLUSIVE[0], "strict", "allow_vendors", "deny_vendors"), off)
    if settings.oot_enabled and settings.keep_calls is None:
        complaints += _told(settings, ("keep_calls_each",), f"{settings.title('keep_calls')} names no folder")
    if settings.simulated is None:
        complaints += _told(settings, ("simulated_record",), f"{settings.title('simulated')} names no chip")
    return complaints


def _not_verified(settings: Settings) -> Iterator[str]:
    """Say which of the ops to verify are SGLang's, as far as it is known without the layer classes."""
    left = [name for name in settings.verify if name != ATTENTION and _is_sglangs(settings, name)]
    if left and settings.is_users("verify"):
        names = "every op" if len(left) == len(OPS) else ", ".join(left)
        yield f"{settings.title('verify')}: no effect on {names}: SGLang's own runs there by your settings"


def _is_sglangs(settings: Settings, op: str) -> bool:
    return settings.policy.order(op)[0].is_sglangs or op in settings.oot_blacklist.names


def why_no_layer_1(settings: Settings, vendor: Vendor) -> str | None:
    """Say why no ATen op can be replaced, or None."""
    off = f"{settings.title('use_flaggems')}=0 switches layer 1 (ATen ops) off"
    if settings.is_users("use_flaggems") and not settings.use_flaggems:
        return off
    if vendor.aten is None:
        return f"vendor {vendor} has no ATen kernels (layer 1)"
    if vendor.aten.missing:
        return f"{', '.join(vendor.aten.missing)} is not installed, whose ATen kernels layer 1 needs"
    return None if settings.use_flaggems else off


def _told(settings: Settings, names: tuple[str, ...], reason: str) -> Iterator[str]:
    given = [name for name in names if settings.is_users(name)]
    said = [name for name in given if getattr(settings, name) or name == "flaggems_log_once"]
    if said:
        yield f"{', '.join(map(settings.title, said))}: no effect: {reason}"
