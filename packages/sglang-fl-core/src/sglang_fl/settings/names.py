"""Lists of names as a user writes them: ``RMSNorm,silu_and_mul`` or ``!rms_norm``.

The form alone is checked here; whether a name names something, is for those to say who know the names.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from sglang_fl.errors import quoted

__all__ = ["NameList", "parse_aten_names", "parse_layer_names", "parse_op_names", "parse_vendor_names"]

_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
#: ATen's spelling, with or without overload and namespace, and FlagGems': its function's name.
_ATEN = re.compile(r"(aten::)?[A-Za-z_][A-Za-z0-9_]*(\.[A-Za-z0-9_]+)?")


@dataclass(frozen=True)
class NameList:
    """A white- or blacklist.

    Parameters
    ----------
    names : its entries
    lifted : what stands in it with a ``!``: the quarantine of that op is lifted. These are no entries:
        a list of such alone is empty
    """

    names: tuple[str, ...] = ()
    lifted: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.names or self.lifted)

    def __str__(self) -> str:
        return ",".join([*self.names, *(f"!{name}" for name in self.lifted)])


def _parse(value: str | Sequence[str], form: re.Pattern[str], example: str) -> tuple[str, ...]:
    """Split a text at its commas, or take a list as it is, and check each name."""
    names = tuple(name.strip() for name in (value.split(",") if isinstance(value, str) else value))
    seen = set()
    for name in names:
        if not name:
            raise ValueError(f"there is an empty name in it. Write {example}")
        if not form.fullmatch(name.removeprefix("!")):
            raise ValueError(f"{quoted(name)} cannot be a name. Write {example}")
        if name in seen:
            raise ValueError(f"{quoted(name)} appears twice")
        seen.add(name)
    return names


def _with_lifts(names: tuple[str, ...]) -> NameList:
    return NameList(
        names=tuple(name for name in names if not name.startswith("!")),
        lifted=tuple(name.removeprefix("!") for name in names if name.startswith("!")),
    )


def parse_op_names(value: str | Sequence[str]) -> tuple[str, ...]:
    """Parse op names.

    Raises
    ------
    ValueError : an empty, malformed or repeated name
    """
    return _parse(value, _IDENTIFIER, "rms_norm,silu_and_mul")


def parse_layer_names(value: str | Sequence[str]) -> NameList:
    """Parse SGLang layer classes and op names.

    Raises
    ------
    ValueError : an empty or malformed name, or the same one twice
    """
    return _with_lifts(_parse(value, _IDENTIFIER, "RMSNorm,silu_and_mul"))


def parse_aten_names(value: str | Sequence[str]) -> NameList:
    """Parse ATen ops; raises as ``parse_layer_names``."""
    return _with_lifts(_parse(value, _ATEN, "mm,add.Tensor"))


def parse_vendor_names(value: str | Sequence[str]) -> tuple[str, ...]:
    """Parse vendors; raises as ``parse_layer_names``, also for a ``!``: a vendor is not in quarantine."""
    names = _parse(value, _IDENTIFIER, "nvidia,ascend")
    for name in names:
        if name.startswith("!"):
            raise ValueError(f"{quoted(name)} cannot be a vendor. Write nvidia,ascend")
    return names
