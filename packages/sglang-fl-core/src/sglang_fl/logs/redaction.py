"""What may be shown of a text that is printed or written: no secret of the environment or the command line.

Variables of others are looked at for no other purpose here; ours are read by ``settings`` alone.
"""

import os
import re
import sys
from collections.abc import Iterator
from html import escape
from typing import TypeVar, cast

__all__ = ["HIDDEN", "is_secret", "redacted"]

T = TypeVar("T")

#: Stands in the place of a secret.
HIDDEN = "***"
#: In the name of a variable or a flag; a tokenizer is none.
_NAME = re.compile(r"TOKEN(?!IZ)|KEY|SECRET|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)
#: Flags whose next word is a secret: ``--api-key``, ``--ssl-keyfile-password``; not ``--max-total-tokens``.
_FLAG = re.compile(r"--\S*(-key|secret|password|-token)", re.IGNORECASE)
#: ``scheme://user:password@host``, and a lone ``scheme://token@host``.
_IN_ADDRESS = re.compile(r"(?<=://)[^\s/@'\"]+(?=@)")
#: A shorter text would be found in innocent words.
_SHORTEST = 6
#: What is written where a secret must be given and none is needed.
_PLACEHOLDERS = {
    *("changeme", "change-me", "default", "disabled", "example", "not-needed", "notneeded", "nothing"),
    *("placeholder", "sk-no-key-required", "undefined", "unknown", "your-api-key", "your_api_key"),
}


def is_secret(name: str) -> bool:
    """Whether a variable's name says that its value is nobody's business."""
    return _NAME.search(name) is not None


def redacted(value: T) -> T:
    """Return a text without secrets, whoever has written it; of plain data, each text in it."""
    secrets = sorted(set(_secrets()), key=len, reverse=True)
    return cast(T, _without(value, secrets))


def _secrets() -> Iterator[str]:
    given = [text for name, text in os.environ.items() if is_secret(name)]
    for word, following in zip(sys.argv, [*sys.argv[1:], ""], strict=True):
        flag, _, text = word.partition("=")
        if _FLAG.fullmatch(flag):
            given.append(text or following)
    for text in filter(_is_telling, given):
        yield from (text, escape(text))  # the second is what a page has of it


def _is_telling(text: str) -> bool:
    """Whether a value is a secret, and no word in the place of one: ``EMPTY``, ``xxxxxxxx``."""
    is_one_letter = len(set(text)) == 1
    return len(text) >= _SHORTEST and not is_one_letter and text.lower() not in _PLACEHOLDERS


def _without(value: object, secrets: list[str]) -> object:
    if isinstance(value, str):
        for secret in secrets:
            value = value.replace(secret, HIDDEN)
        return _IN_ADDRESS.sub(HIDDEN, value)
    if isinstance(value, dict):
        return {_without(key, secrets): _without(item, secrets) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_without(item, secrets) for item in value)
    return value
