"""Read the file that ``SGLANG_FL_CONFIG`` names: YAML of which only the plain parts are accepted.

Values stay the text that was written, ``yes`` stays ``yes``: what it means, its setting says. Aliases and
tags are refused, so nothing can grow, run or refer to itself.
"""

import os
import stat
from pathlib import Path
from typing import Any, TypeAlias

import yaml

from sglang_fl.errors import SettingsError, quoted
from sglang_fl.logs.shared_file import open_for_reading

__all__ = ["Value", "is_empty", "read_file"]

#: A text, or a list or mapping of values.
Value: TypeAlias = "str | list[Value] | dict[str, Value]"

#: Hundreds of times what all settings need; PyYAML reads it in less than a second.
MAX_BYTES = 64 * 1024
#: The file's mapping, ``op_backends``, one op's list, its step; and one more, for a clearer error.
MAX_DEPTH = 5

_TAGS = {
    yaml.ScalarNode: yaml.BaseLoader.DEFAULT_SCALAR_TAG,
    yaml.SequenceNode: yaml.BaseLoader.DEFAULT_SEQUENCE_TAG,
    yaml.MappingNode: yaml.BaseLoader.DEFAULT_MAPPING_TAG,
}
_NULLS = ("~", "null", "Null", "NULL")


class _Rejected(yaml.MarkedYAMLError):  # type: ignore[misc]
    """What YAML allows and a settings file does not."""

    def __init__(self, problem: str, where: Any) -> None:
        super().__init__(problem=problem, problem_mark=where)


class _Loader(yaml.BaseLoader):  # type: ignore[misc]
    """Composes nodes as YAML says, but no aliases, and no deeper than a settings file is."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise _Rejected("aliases are not accepted; write the value out", event.start_mark)
        if self.depth == MAX_DEPTH:
            raise _Rejected("this is nested deeper than any setting", event.start_mark)
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


def read_file(path: Path) -> dict[str, Value]:
    """Read a settings file.

    Returns
    -------
    dict : what stands under each key of the file; a null is an empty text

    Raises
    ------
    SettingsError : the file cannot be read, is no YAML, or uses what is not accepted; one line that
        names the variable, the file, and where in it
    """
    text = ""
    try:
        text = _read_text(path)
        value = _plain(_Loader(text).get_single_node())
    except yaml.MarkedYAMLError as error:
        raise _error(path, _where(error, text)) from None
    except yaml.reader.ReaderError as error:
        raise _error(path, f"the character {chr(error.character)!r} is not accepted in YAML") from None
    except (OSError, ValueError, OverflowError) as error:  # also from PyYAML, for impossible escapes
        raise _error(path, str(getattr(error, "strerror", None) or error)) from None
    if is_empty(value):
        return {}
    if not isinstance(value, dict):
        raise _error(
            path, f"it does not begin with a key, but with {text.strip()[:40]!r}. Write prefer: vendor"
        )
    return value


def is_empty(value: Value) -> bool:
    """Whether a value counts as unset, as an empty variable does."""
    return not value


def _error(path: Path, problem: str) -> SettingsError:
    return SettingsError(f"SGLANG_FL_CONFIG={quoted(str(path))}: {problem}")


def _read_text(path: Path) -> str:
    with open_for_reading(path) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):  # each process reads it anew
            raise ValueError("it is no regular file")
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"the file is larger than {MAX_BYTES // 1024} KiB, which no settings need")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise ValueError(f"the file is not UTF-8: byte 0x{data[error.start]:02x} at {error.start}") from None


def _where(error: yaml.MarkedYAMLError, text: str) -> str:
    mark = error.problem_mark or error.context_mark
    problem = error.problem or error.context or "this is no YAML"
    if mark is None:
        return str(problem)
    start = text.rfind("\n", 0, mark.index) + 1
    line = text[start:].partition("\n")[0].strip()
    return f"line {mark.line + 1}, {line[:60]!r}: {problem}"


def _plain(node: Any) -> Value:
    """Turn a node into text, list or dict."""
    if node is None:
        return ""
    if node.tag != _TAGS[type(node)]:
        tag = node.tag.replace("tag:yaml.org,2002:", "!!")
        raise _Rejected(f"the tag {quoted(tag)} is not accepted; write the plain value", node.start_mark)
    if isinstance(node, yaml.SequenceNode):
        return [_plain(item) for item in node.value]
    if isinstance(node, yaml.MappingNode):
        return _mapping(node)
    text: str = node.value
    return "" if node.style is None and text in _NULLS else text


def _mapping(node: Any) -> dict[str, Value]:
    values: dict[str, Value] = {}
    for key_node, value_node in node.value:
        key = _plain(key_node)
        if not isinstance(key, str):
            raise _Rejected("a key must be a name", key_node.start_mark)
        if key in values:
            raise _Rejected(f"the key {quoted(key)} appears twice", key_node.start_mark)
        values[key] = _plain(value_node)
    return values
