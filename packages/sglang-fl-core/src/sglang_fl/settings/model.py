"""The one reader of the environment: typed settings, and where each value came from.

Priority: environment, then the file that ``SGLANG_FL_CONFIG`` names, then the defaults of the chosen
vendor, then those declared here.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    PrivateAttr,
    ValidationError,
)
from pydantic.fields import FieldInfo

from sglang_fl.errors import SettingsError, choices, few, nearest, quoted
from sglang_fl.foreign_names import is_foreign, our_variable
from sglang_fl.logs.shared_file import named_path
from sglang_fl.ops import OPS
from sglang_fl.settings.credentials import API_KEY
from sglang_fl.settings.names import (
    NameList,
    parse_aten_names,
    parse_layer_names,
    parse_op_names,
    parse_vendor_names,
)
from sglang_fl.settings.policy import PREFERABLE, SGLANG, Order, Policy, Prefer, parse_orders
from sglang_fl.settings.processes import ATEN_CALLS, BENCH, LAUNCHER, PROFILE, ROOM
from sglang_fl.settings.sources import Given, as_text, collect, file_key, variable
from sglang_fl.vendor import BackendKind, Vendor

__all__ = [
    "ATTENTION",
    "Setting",
    "Settings",
    "explain",
    "markdown_table",
    "prepare_environment",
    "unknown_variables",
]

#: In ``SGLANG_FL_VERIFY``: calls of SGLang's attention layer, whichever backend runs them.
ATTENTION = "attention"
#: Stands for all ops in ``SGLANG_FL_VERIFY``, and for attention.
ALL = "all"
PREFIXES = ("SGLANG_FL_", "SGLANG_FLAGGEMS_")

#: What a vendor package has no default for: files, and which vendors there are.
USERS_ALONE = frozenset(
    ("platform", "simulated", "simulated_record", "dispatch_log", "flaggems_record", "flaggems_log_path")
) | {"allow_vendors", "deny_vendors", "keep_calls", "keep_calls_each"}

LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]


def _upper(text: str) -> str:
    return text.upper()


def _parse_orders(value: str | Mapping[str, str | Sequence[str]]) -> Mapping[str, Order]:
    try:
        return parse_orders(value)
    except SettingsError as error:  # what pydantic understands
        raise ValueError(str(error)) from error


def _parse_prefer(text: str) -> Prefer:
    if text not in PREFERABLE:
        raise ValueError(f"no such backend kind. {choices(text, PREFERABLE)}")
    return SGLANG if text == SGLANG else BackendKind(text)


def _parse_verify(value: str | Sequence[str]) -> tuple[str, ...]:
    names = parse_op_names(value)
    for name in names:
        if name not in OPS and name not in (ALL, ATTENTION):
            raise ValueError(f"there is no op {quoted(name)}. {choices(name, [*OPS, ATTENTION, ALL])}")
    return (*OPS, ATTENTION) if ALL in names else names


def _parse_rate(text: str) -> Fraction:
    if not re.fullmatch(r"1(/[1-9][0-9]{0,8})?", text):
        raise ValueError("write 1 for every call, or 1/64 for one in so many")
    return Fraction(text)


def _refuse(text: str) -> None:
    raise ValueError("this setting is not implemented in this version. Unset it.")


LayerNames = Annotated[NameList, PlainValidator(parse_layer_names)]
AtenNames = Annotated[NameList, PlainValidator(parse_aten_names)]
VendorNames = Annotated[tuple[str, ...], PlainValidator(parse_vendor_names)]
File = Annotated[Path | None, PlainValidator(named_path)]


class Settings(BaseModel):
    """What a user can set. ``sources`` knows the variable of a field and its key in a file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    use_flaggems: bool = Field(
        default=False,
        description="layer 1 (ATen ops) master switch; `1` by default where the vendor offers ATen kernels",
    )
    flagos_whitelist: AtenNames = Field(
        default=NameList(),
        description="replace only these ATen ops (layer 1): `mul,aten::div.Tensor`; `all`: each that the "
        "vendor has a kernel for",
    )
    flagos_blacklist: AtenNames = Field(
        default=NameList(), description="ATen ops that are left to PyTorch (layer 1)"
    )
    flaggems_record: bool = Field(
        default=False, description="`1`: record the replaced ATen ops that are called (layer 1)"
    )
    flaggems_log_path: File = Field(default=None, description="the file of that record (layer 1)")
    flaggems_log_once: bool = Field(
        default=True, description="`1`: record each ATen op once, `0`: every call (layer 1)"
    )
    oot_enabled: bool = Field(
        default=True,
        description="layer 2 (fused ops) master switch. `0`: SGLang runs its own, bit for bit",
    )
    prefer: Annotated[Prefer, PlainValidator(_parse_prefer)] = Field(
        default=BackendKind.FLAGOS,
        description="the backend kind tried first: `flagos`, `vendor`, `reference`; `sglang`: none of ours",
    )
    per_op: Annotated[Mapping[str, Order], PlainValidator(_parse_orders)] = Field(
        default={}, description="orders of single ops: `silu_and_mul=flagos;rms_norm=vendor|reference`"
    )
    oot_whitelist: LayerNames = Field(
        default=NameList(),
        description="dispatch only these SGLang layer classes or ops: `RotaryEmbedding,rms_norm`",
    )
    oot_blacklist: LayerNames = Field(
        default=NameList(), description="SGLang layer classes or ops that are left to SGLang"
    )
    strict: bool = Field(
        default=False, description="`1`: a kernel that fails in its first call is an error, no fallback"
    )
    allow_vendors: VendorNames = Field(
        default=(), description="allow native kernels of these vendors only: `nvidia`"
    )
    deny_vendors: VendorNames = Field(default=(), description="vendors whose native kernels do not run")
    verify: Annotated[tuple[str, ...], PlainValidator(_parse_verify)] = Field(
        default=(),
        description="ops whose calls a live server samples and holds against float64: `rms_norm`, "
        "`attention` (SGLang's, whichever backend runs it), `all`",
    )
    verify_rate: Annotated[Fraction, PlainValidator(_parse_rate)] = Field(
        default=Fraction(1, 64), description="how many calls are sampled: `1/64`, or `1` for each"
    )
    keep_calls: File = Field(
        default=None,
        description="folder that keeps what kernels are called with, before they run, for `sglang-fl replay`",
    )
    keep_calls_each: bool = Field(
        default=False, description="`1`: keep the latest call of each op and shape there, `0`: the first"
    )
    dispatch_log: File = Field(default=None, description="file to log which implementation ran each layer")
    config: File = Field(default=None, description="YAML file with these settings")
    platform: str | None = Field(default=None, description="the vendor, where it is not found by itself")
    simulated: str | None = Field(
        default=None, description="a chip to simulate, by its vendor's name: `mlu`. For tests; it is slow"
    )
    simulated_record: File = Field(
        default=None, description="file that lists what a model asks of the simulated chip"
    )
    log_level: Annotated[LogLevel, BeforeValidator(_upper)] = Field(
        default="INFO",
        description="level of the `sglang_fl` logger: `DEBUG`, `INFO`, `WARNING`, `ERROR`",
    )
    dist_backend: Annotated[None, PlainValidator(_refuse)] = Field(
        default=None, description="layer 3 (communication). Not in this version: refused"
    )

    _given: Mapping[str, Given] = PrivateAttr(default_factory=dict)

    @classmethod
    def read(cls, vendor: Vendor | None = None) -> "Settings":
        """Read the environment, over a file, over a vendor's defaults.

        Raises
        ------
        SettingsError : whatever a user must change; one line for each
        """
        return cls._of(*collect(cls.model_fields, os.environ, vendor))

    @classmethod
    def of_vendor(cls, vendor: Vendor) -> "Settings":
        """Return the settings of a user who has set nothing.

        Raises
        ------
        SettingsError : a wrong default of the vendor package, or one that is the user's alone to set
        """
        foreign = sorted(vendor.defaults.keys() & USERS_ALONE)
        if foreign:
            raise SettingsError(f"its default {foreign[0]} is the user's alone to set")
        return cls._of(*collect(cls.model_fields, {}, vendor))

    @classmethod
    def _of(cls, given: Mapping[str, Given], complaints: list[str]) -> "Settings":
        try:
            settings = cls.model_validate({name: said.value for name, said in given.items()})
        except ValidationError as error:
            complaints += [_complaint(dict(detail), given) for detail in error.errors(include_url=False)]
            raise SettingsError("\n".join(complaints)) from None
        if complaints:
            raise SettingsError("\n".join(complaints))
        settings._given = given
        return settings

    def source(self, name: str) -> str:
        """Return where a value comes from: ``environment``, a file, ``vendor NAME`` or ``default``."""
        return self._given[name].source if name in self._given else "default"

    def title(self, name: str) -> str:
        """Return how the user calls a setting: its variable, or its key in the file."""
        return self._given[name].title if name in self._given else variable(name)

    def is_users(self, name: str) -> bool:
        """Whether the user has set it, rather than a vendor package or nobody."""
        return name in self._given and not self._given[name].is_vendors

    def quoted(self, name: str) -> str:
        """Return a setting as an error quotes it: ``SGLANG_FL_PREFER='vendor'``."""
        origin = self._given[name].origin if name in self._given else ""
        return f"{self.title(name)}={quoted(_written(getattr(self, name)))}{origin}"

    @property
    def policy(self) -> Policy:
        """The part of the settings that says who may run."""
        return Policy(
            prefer=self.prefer,
            per_op=self.per_op,
            strict=self.strict,
            allow_vendors=self.allow_vendors,
            deny_vendors=self.deny_vendors,
            lifted=frozenset(self.oot_whitelist.lifted + self.oot_blacklist.lifted),
            titles={name: said.title for name, said in self._given.items()},
            prefer_is_users=self.is_users("prefer"),
        )


@dataclass(frozen=True)
class Setting:
    """One setting for a report.

    Parameters
    ----------
    variable : its environment variable
    value : as a user would write it
    source : ``environment``, the path of a file, ``vendor NAME`` or ``default``
    meaning : what it does
    """

    variable: str
    value: str
    source: str
    meaning: str


def explain(settings: Settings) -> list[Setting]:
    """Tell each setting's value and where it came from."""
    return [
        Setting(
            variable(name),
            _written(getattr(settings, name)),
            settings.source(name),
            (field.description or "").replace("`", ""),
        )
        for name, field in Settings.model_fields.items()
    ]


def markdown_table() -> str:
    """Return the table of ``docs/configure.md``: variable, key in a file, default, meaning."""
    rows = ["| variable | key | default | meaning |", "|---|---|---|---|"]
    for name, field in Settings.model_fields.items():
        default, meaning = _written(field.default), (field.description or "").replace("|", "\\|")
        key = file_key(name)
        cells = (variable(name), key or "", default)
        rows.append(f"| {' | '.join(f'`{cell}`' if cell else '' for cell in cells)} | {meaning} |")
    return "\n".join(rows)


def _written(value: Any) -> str:
    """Write a value as a user would; what no terminal can show, escaped."""
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, Mapping):
        return ";".join(f"{op}={'|'.join(map(str, order))}" for op, order in value.items())
    if isinstance(value, tuple):
        return ",".join(value)
    return "" if value is None else str(value).encode("utf-8", "backslashreplace").decode()


def unknown_variables() -> list[str]:
    """Say of each variable with one of our prefixes, or of another plugin of FlagOS, that it does nothing."""
    known = {API_KEY, ATEN_CALLS, BENCH, LAUNCHER, PROFILE, ROOM, *map(variable, Settings.model_fields)}
    unknown = [
        name
        for name in sorted(os.environ)
        if name not in known
        and (name.startswith(PREFIXES) or is_foreign(name) or _lacks_an_underscore(name, known))
    ]
    return few(unknown, lambda name: f"{_shown(name)}: {_what_instead(name, known)}")


def _lacks_an_underscore(name: str, known: set[str]) -> bool:
    """Whether it is a setting but for the underscore behind the prefix; SGLang's own names begin so too."""
    begin, rest = name.upper()[:9], name.upper()[9:]
    return begin == "SGLANG_FL" and f"{begin}_{rest}" in known


def _shown(name: str) -> str:
    return name if name.isascii() and name.isidentifier() and len(name) < 80 else quoted(name)


def _what_instead(name: str, known: set[str]) -> str:
    ours = our_variable(name)
    if ours is None:
        return "it has no effect: layer 3 (communication) is not in this version."
    if ours != name and ours in known:
        return f"it has no effect here, where it is called {ours}."
    near = nearest(ours, known)  # the full list is long, and `sglang-fl env` prints it
    return f"there is no such variable.{f' Nearest: {near}.' if near else ''}"


def _complaint(error: dict[str, Any], given: Mapping[str, Given]) -> str:
    """Turn one of pydantic's errors into: how the user calls it, text as given, what is valid."""
    name = str(error["loc"][0])
    said = given[name]
    text = as_text(said.value)
    if error["type"] == "value_error":
        reason = str(error["ctx"]["error"])
    else:
        reason = _reason(Settings.model_fields[name], text)
    return f"{said.title}={quoted(text)}{said.origin}: {reason}"


def _reason(field: FieldInfo, text: str) -> str:
    if field.annotation is bool:
        return "neither 1 nor 0."
    return f"no such level. {choices(text.upper(), get_args(field.annotation))}"


def prepare_environment(vendor: Vendor) -> None:
    """Set the variables that a vendor's kernel libraries read, unless the user has set them."""
    for name, text in vendor.environment.items():
        os.environ.setdefault(name, text)
