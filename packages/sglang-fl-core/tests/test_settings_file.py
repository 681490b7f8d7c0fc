"""The settings file: plain YAML is read as written; whatever else it is, is one message."""

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from sglang_fl.errors import SettingsError, quoted
from sglang_fl.settings.file import MAX_BYTES, read_file

PLAIN = """\
# the settings of this machine
prefer: vendor
strict: yes        # stays "yes"
log_level: "DEBUG"
dispatch_log: 007
platform: ~
oot_blacklist: [RMSNorm, 'silu_and_mul']
op_backends:
  rms_norm: vendor|reference
  silu_and_mul:
    - vendor:toy
    - flagos
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str | bytes], Path]:
    def write(content: str | bytes) -> Path:
        path = tmp_path / "fl.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


def refusal(path: Path) -> str:
    """Return the one line with which a file is refused, without its head."""
    with pytest.raises(SettingsError) as error:
        read_file(path)
    head, message = f"SGLANG_FL_CONFIG={quoted(str(path))}: ", str(error.value)
    assert message.startswith(head)
    assert "\n" not in message
    return message.removeprefix(head)


def test_values_stay_what_was_written(write: Callable[..., Path]):
    assert read_file(write(PLAIN)) == {
        "prefer": "vendor",
        "strict": "yes",
        "log_level": "DEBUG",
        "dispatch_log": "007",
        "platform": "",
        "oot_blacklist": ["RMSNorm", "silu_and_mul"],
        "op_backends": {"rms_norm": "vendor|reference", "silu_and_mul": ["vendor:toy", "flagos"]},
    }


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "~\n", "{}\n", "\ufeff# nothing\n"])
def test_file_without_settings_is_empty(write: Callable[..., Path], text: str):
    assert read_file(write(text)) == {}


@pytest.mark.parametrize("text", ["strict: !!str 1\n", "!!map {strict: 1}\n", "strict: &name 1\n"])
def test_tags_that_say_nothing_and_anchors_that_nobody_uses_are_accepted(
    write: Callable[..., Path], text: str
):
    assert read_file(write(text)) == {"strict": "1"}


def bomb(levels: int = 9) -> str:
    """Make a text that stands for 10 ** levels words."""
    lines = ["a0: &a0 [lol, lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]")
    return "\n".join(lines)


HOSTILE = {
    "alias": ("a: &x [b]\nc: *x\n", "line 2, 'c: *x': aliases are not accepted"),
    "cycle": ("a: &x [*x]\n", "line 1, 'a: &x [*x]': aliases are not accepted"),
    "laughs": (bomb(), "aliases are not accepted"),
    "merge": ("a: &x {b: c}\nd:\n  <<: *x\n", "aliases are not accepted"),
    "unknown-alias": ("a: *x\n", "aliases are not accepted"),
    "object": (
        "prefer: !!python/object/apply:os.system [echo]\n",
        "the tag '!!python/object/apply:os.system' is not accepted; write the plain value",
    ),
    "python-name": ("!!python/name:os.system\n", "the tag '!!python/name:os.system' is not accepted"),
    "int": ("strict: !!int 1\n", "line 1, 'strict: !!int 1': the tag '!!int' is not accepted"),
    "own-tag": ("!settings {strict: 1}\n", "the tag '!settings' is not accepted"),
    "twice": (
        "strict: 1\nprefer: vendor\nstrict: 0\n",
        "line 3, 'strict: 0': the key 'strict' appears twice",
    ),
    "twice-inside": ("op_backends: {a: b, a: c}\n", "the key 'a' appears twice"),
    "key-of-another-type": ("? [a, b]\n: c\n", "a key must be a name"),
    "list": ("- strict\n", "it does not begin with a key, but with '- strict'. Write prefer: vendor"),
    "word": ("vendor\n", "it does not begin with a key, but with 'vendor'"),
    "two-documents": ("strict: 1\n---\nstrict: 0\n", "but found another document"),
    "unclosed": ("oot_blacklist: [RMSNorm\n", "line 2, '': "),
    "tab": ("a:\n\t- b\n", "line 2, '- b': found character '\\t' that cannot start any token"),
    "bad-indent": ("a: b\n c: d\n", "line 2, 'c: d': mapping values are not allowed here"),
    "control-character": ("a: \x07\n", r"the character '\x07' is not accepted in YAML"),
    "not-utf-8": (b"prefer: \xff\n", "the file is not UTF-8: byte 0xff at 8"),
    "utf-16": ("prefer: vendor\n".encode("utf-16"), "the file is not UTF-8: byte 0xff at 0"),
    "binary": (bytes(range(256)), "the file is not UTF-8"),
    "impossible-escape": ('a: "\\UFFFFFFFF"\n', ""),
    "deep-list": ("[" * 20_000, "this is nested deeper than any setting"),
    "deep-mapping": ("{a: " * 10_000, "this is nested deeper than any setting"),
    "deep-block": ("".join(f"{' ' * n}a:\n" for n in range(300)), "this is nested deeper than any setting"),
    "huge": ("#" * (MAX_BYTES + 1), "the file is larger than 64 KiB, which no settings need"),
    "other-yaml": ("%YAML 2.0\n---\nstrict: 1\n", "found incompatible YAML document"),
}


@pytest.mark.parametrize(("content", "message"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_file_is_one_message(write: Callable[..., Path], content: str | bytes, message: str):
    start = time.monotonic()
    assert message in refusal(write(content))
    assert time.monotonic() - start < 20


SLOW = {
    "long-line": "a" * MAX_BYTES,
    "many-keys": "".join(f"k{n}: v\n" for n in range(6_000)),
    "many-quotes": "'" * MAX_BYTES,
    "many-colons": ": " * (MAX_BYTES // 2),
    "many-questions": "? " * (MAX_BYTES // 2),
    "many-lists": "- " * (MAX_BYTES // 2),
    "many-documents": "---\n" * (MAX_BYTES // 4),
}


@pytest.mark.parametrize("text", SLOW.values(), ids=SLOW)
def test_largest_file_is_read_or_refused_in_seconds(write: Callable[..., Path], text: str):
    path, start = write(text), time.monotonic()
    with contextlib.suppress(SettingsError):
        read_file(path)
    assert time.monotonic() - start < 20


def test_file_that_is_not_there(tmp_path: Path):
    assert refusal(tmp_path / "no.yaml") == "No such file or directory"


def test_folder_is_refused(tmp_path: Path):
    assert refusal(tmp_path) == "it is a folder"


def test_pipe_is_refused_rather_than_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    assert refusal(tmp_path / "pipe") == "it is a named pipe"


def test_device_without_end_is_refused():
    assert refusal(Path("/dev/zero")) == "it is no regular file"


def test_name_that_no_file_can_have():
    assert refusal(Path("x" * 5_000)) == "File name too long"
