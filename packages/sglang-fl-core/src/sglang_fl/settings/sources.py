"""What was given, and where: the environment over a file over the defaults of a vendor package.

Here values are what was written, and only their shape is looked at; what they mean, ``settings`` says.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from sglang_fl.errors import SettingsError, choices, few, quoted
from sglang_fl.logs.shared_file import named_path
from sglang_fl.settings.file import Value, read_file
from sglang_fl.vendor import Vendor

__all__ = ["ENVIRONMENT", "EXCLUSIVE", "Given", "as_text", "collect", "file_key", "variable"]

ENVIRONMENT = "environment"
#: At most one of each pair counts.
EXCLUSIVE = (("oot_whitelist", "oot_blacklist"), ("flagos_whitelist", "flagos_blacklist"))
_LISTS = (*EXCLUSIVE[0], *EXCLUSIVE[1], "allow_vendors", "deny_vendors", "verify")


def variable(name: str) -> str:
    """Return the environment variable of a setting."""
    if name == "use_flaggems":
        return "USE_FLAGGEMS"
    return f"SGLANG_{'' if name.startswith('flaggems_') else 'FL_'}{name.upper()}"


def file_key(name: str) -> str | None:
    """Return the key of a setting in a file; None for the file's own name."""
    return {"per_op": "op_backends", "config": None}.get(name, name)


@dataclass(frozen=True)
class Given:
    """A value as it was given.

    Parameters
    ----------
    value : what was written
    source : ``environment``, the path of a file, or ``vendor NAME``
    title : how the user calls the setting there: its variable, or the file and its key
    is_vendors : it comes from the vendor package, not from the user
    """

    value: Value
    source: str
    title: str
    is_vendors: bool = False


def collect(
    names: Iterable[str], environment: Mapping[str, str], vendor: Vendor | None
) -> tuple[dict[str, Given], list[str]]:
    """Lay environment over file over vendor.

    Parameters
    ----------
    names : the settings
    environment : the process's; an empty variable counts as unset
    vendor : whose defaults count, if any

    Returns
    -------
    tuple : what was given for each setting, and what is wrong with the rest, one line each
    """
    names = list(names)
    from_vendor, complaints = _from_vendor(names, vendor)
    users: dict[str, Given] = {}
    path = environment.get(variable("config"))
    try:
        users = _from_file(names, path) if path else {}
    except SettingsError as error:
        complaints.append(str(error))
    for name in names:
        text = environment.get(variable(name))
        if text:
            users[name] = Given(text, ENVIRONMENT, variable(name))
    for pair in EXCLUSIVE:
        if users.keys() & set(pair):  # a vendor's list must not stand against a user's
            for name in pair:
                from_vendor.pop(name, None)
    return from_vendor | users, complaints


def _from_vendor(names: list[str], vendor: Vendor | None) -> tuple[dict[str, Given], list[str]]:
    defaults = _defaults(vendor) if vendor else {}
    possible = {name for name in names if file_key(name)}
    complaints = [
        f"{name!r} (a default of the vendor package): no such setting. {choices(name, possible)}"
        for name in sorted(defaults.keys() - possible)
    ]
    given = {
        name: Given(text, f"vendor {vendor}", variable(name), is_vendors=True)
        for name, text in defaults.items()
        if name in possible and text
    }
    return given, complaints


def _defaults(vendor: Vendor) -> dict[str, str]:
    """Return a vendor's defaults: layer 1 is on where it can run, unless the vendor says otherwise."""
    can_run = vendor.aten is not None and not vendor.aten.missing
    return {**({"use_flaggems": "1"} if can_run else {}), **vendor.defaults}


def _from_file(names: list[str], path: str) -> dict[str, Given]:
    """Read a file.

    Raises
    ------
    SettingsError : as ``read_file``; unknown keys, and values of another shape, one line for each
    """
    file = f"{variable('config')}={quoted(path)}"
    by_key = {key: name for name in names if (key := file_key(name))}
    given, wrong = {}, []
    try:
        content = read_file(named_path(path))
    except ValueError as error:
        raise SettingsError(f"{file}: {error}") from None
    for key, value in content.items():
        if key not in by_key or _wrong_shape(by_key[key], value):
            wrong.append(key)
        elif value:
            given[by_key[key]] = Given(value, path, f"{file}: {key}")

    def complaint(key: str) -> str:
        reason = f"no such key. {choices(key, by_key)}"
        if key in by_key:
            reason = _wrong_shape(by_key[key], content[key]) or ""
        shown = key if key.isidentifier() and key.isascii() else quoted(key)
        return f"{file}: {shown}={quoted(as_text(content[key]))}: {reason}"

    if wrong:
        raise SettingsError("\n".join(few(wrong, complaint)))
    return given


def _wrong_shape(name: str, value: Value) -> str | None:
    """Say why a file's value has not the shape of its setting, or None. Empty ones count as unset."""
    if not value or (isinstance(value, str) and name != "per_op"):
        return None
    if name == "per_op":
        is_orders = isinstance(value, dict) and all(map(_is_text_or_list, value.values()))
        return None if is_orders else "it must have a line for each op. Write rms_norm: vendor|reference"
    if name in _LISTS:
        return None if _is_text_or_list(value) else "it must be a list of names. Write [one, two]"
    return "it must be a single value"


def _is_text_or_list(value: Value) -> bool:
    items = value if isinstance(value, list) else [value]
    return all(isinstance(item, str) for item in items)


def as_text(value: Value) -> str:
    """Write a value on one line, as in a variable."""
    if isinstance(value, dict):
        return ";".join(f"{key}={as_text(item)}" for key, item in value.items())
    return value if isinstance(value, str) else ",".join(map(as_text, value))
