"""The one reader of the environment: typed settings, and where each value came from.

Priority: environment, then the defaults of the chosen vendor, then those declared here.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BeforeValidator, Field, PlainValidator, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from sglang_fl.errors import SettingsError, choices
from sglang_fl.ops import OPS
from sglang_fl.policy import Order, Policy, parse_order
from sglang_fl.vendor import BackendKind

__all__ = ["Setting", "Settings", "SglangSettings", "unknown_variables"]

PREFIX = "SGLANG_FL_"

LogLevel = Literal["DEBUG", "INFO", "WARNING", "ERROR"]


def _variable(field_name: str) -> str:
    return f"{PREFIX}{field_name.upper()}"


def _upper(text: str) -> str:
    return text.upper()


def _parse_per_op(text: str) -> Mapping[str, Order]:
    """Parse ``silu_and_mul=flagos;rms_norm=vendor|reference``."""
    orders: dict[str, Order] = {}
    for part in text.split(";"):
        name, equals, order = (piece.strip() for piece in part.partition("="))
        if not name or not equals:
            raise ValueError(f"{part!r} is not of the form op=kind. Write rms_norm=vendor|reference;...")
        if name not in OPS:
            raise ValueError(f"there is no op {name!r}. {choices(name, OPS)}")
        if name in orders:
            raise ValueError(f"the op {name!r} stands twice")
        try:
            orders[name] = parse_order(order)
        except SettingsError as error:
            raise ValueError(str(error)) from error
    return orders


class Settings(BaseSettings):
    """What a user can set. The variable of a field is ``SGLANG_FL_`` and its name in upper case."""

    model_config = SettingsConfigDict(
        alias_generator=_variable,
        populate_by_name=True,
        case_sensitive=True,
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        validate_default=False,
    )

    oot_enabled: bool = Field(default=True, description="layer 2 (fused ops) master switch")
    prefer: BackendKind = Field(
        default=BackendKind.FLAGOS, description="the backend kind tried first: flagos, vendor, reference"
    )
    per_op: Annotated[Mapping[str, Order], NoDecode, PlainValidator(_parse_per_op)] = Field(
        default={}, description="orders of single ops: silu_and_mul=flagos;rms_norm=vendor|reference"
    )
    strict: bool = Field(default=False, description="1: a kernel that fails is an error, no fallback")
    dispatch_log: Path | None = Field(default=None, description="file that tells what each op ran on")
    platform: str | None = Field(default=None, description="the vendor, where it is not found by itself")
    log_level: Annotated[LogLevel, BeforeValidator(_upper)] = Field(
        default="INFO", description="level of the sglang_fl logger"
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Put what is passed to the constructor, a vendor's defaults, below the environment."""
        return (env_settings, init_settings)

    @classmethod
    def read(cls, vendor_defaults: Mapping[str, str] | None = None) -> "Settings":
        """Read the environment over a vendor's defaults.

        Raises
        ------
        SettingsError : a malformed value, or a variable that is documented but does nothing yet;
            one line for each
        """
        complaints = list(_not_implemented())
        defaults: dict[str, Any] = dict(vendor_defaults or {})
        complaints += [
            f"{name!r} (a default of the vendor package): no such setting. {choices(name, cls.model_fields)}"
            for name in sorted(defaults.keys() - cls.model_fields.keys())
        ]
        try:
            settings = cls(**defaults)
        except ValidationError as error:
            complaints += [_complaint(dict(detail), defaults) for detail in error.errors(include_url=False)]
            raise SettingsError("\n".join(complaints)) from None
        if complaints:
            raise SettingsError("\n".join(complaints))
        return settings

    @property
    def policy(self) -> Policy:
        """The part of the settings that says who may run."""
        return Policy(prefer=self.prefer, per_op=self.per_op, strict=self.strict)


@dataclass(frozen=True)
class Setting:
    """One setting for a report.

    Parameters
    ----------
    variable : its environment variable
    value : as a user would write it
    source : ``environment``, ``vendor NAME`` or ``default``
    meaning : what it does
    """

    variable: str
    value: str
    source: str
    meaning: str


def explain(settings: Settings, vendor_name: str, vendor_defaults: Mapping[str, str]) -> list[Setting]:
    """Tell each setting's value and where it came from."""

    def source(name: str) -> str:
        if os.environ.get(_variable(name)):
            return "environment"
        return f"vendor {vendor_name}" if name in vendor_defaults else "default"

    return [
        Setting(_variable(name), _written(getattr(settings, name)), source(name), field.description or "")
        for name, field in Settings.model_fields.items()
    ]


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, Mapping):
        return ";".join(f"{op}={'|'.join(map(str, order))}" for op, order in value.items())
    return "" if value is None else str(value)


class SglangSettings(BaseSettings):
    """SGLang's own variables that decide whether and as what it asks us."""

    model_config = SettingsConfigDict(
        env_prefix="SGLANG_", env_ignore_empty=True, extra="ignore", frozen=True
    )

    platform: str | None = None
    use_cpu_engine: str = "0"


#: Documented variables that do nothing in this version, and the value that means just that.
_NOT_IMPLEMENTED: dict[str, str | None] = {
    "USE_FLAGGEMS": "0",
    "SGLANG_FL_FLAGOS_WHITELIST": None,
    "SGLANG_FL_FLAGOS_BLACKLIST": None,
    "SGLANG_FLAGGEMS_RECORD": "0",
    "SGLANG_FLAGGEMS_LOG_PATH": None,
    "SGLANG_FLAGGEMS_LOG_ONCE": None,
    "SGLANG_FL_OOT_WHITELIST": None,
    "SGLANG_FL_OOT_BLACKLIST": None,
    "SGLANG_FL_ALLOW_VENDORS": None,
    "SGLANG_FL_DENY_VENDORS": None,
    "SGLANG_FL_CONFIG": None,
    "SGLANG_FL_DIST_BACKEND": None,
}


def _not_implemented() -> Iterator[str]:
    for name, harmless in _NOT_IMPLEMENTED.items():
        text = os.environ.get(name)
        if text and text != harmless:
            remedy = "Unset it" if harmless is None else f"Unset it or set it to {harmless}"
            yield f"{name}={text!r}: this variable is not implemented in this version. {remedy}."


def unknown_variables() -> list[str]:
    """Say of each variable with one of our prefixes that none of them is called so."""
    known = {*map(_variable, Settings.model_fields), *_NOT_IMPLEMENTED}
    return [
        f"{name}: there is no such variable.{_nearest(name, known)}"
        for name in sorted(os.environ)
        if name.startswith((PREFIX, "SGLANG_FLAGGEMS_")) and name not in known
    ]


def _nearest(name: str, known: set[str]) -> str:
    # The full list is long, and `sglang-fl env` prints it.
    _, found, nearest = choices(name, known).partition(" Nearest:")
    return found + nearest


def _complaint(error: dict[str, Any], defaults: Mapping[str, Any]) -> str:
    """Turn one of pydantic's errors into: variable, text as given, what is valid."""
    name = str(error["loc"][0]).removeprefix(PREFIX).lower()
    variable = _variable(name)
    if os.environ.get(variable):
        text, origin = os.environ[variable], ""
    else:
        text, origin = str(defaults[name]), " (a default of the vendor package)"
    if error["type"] == "value_error":
        reason = str(error["ctx"]["error"])
    else:
        reason = _reason(Settings.model_fields[name], text)
    return f"{variable}={text!r}{origin}: {reason}"


def _reason(field: FieldInfo, text: str) -> str:
    if field.annotation is BackendKind:
        return f"no such backend kind. {choices(text, [kind.value for kind in BackendKind])}"
    if field.annotation is bool:
        return "neither 1 nor 0."
    return f"no such level. {choices(text.upper(), get_args(field.annotation))}"
