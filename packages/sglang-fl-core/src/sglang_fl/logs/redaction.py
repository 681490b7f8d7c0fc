"""What may be shown of a text that is printed or written: no secret of the environment or the command line.

Variables of others are looked at for no other purpose here; ours are read by ``settings`` alone.
"""

import os
import re
import sys
from collections.abc import Iterator
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
_SHORTEST = 4


def is_secret(name: str) -> bool:
    """Whether a variable's name says that its value is nobody's business."""
    return _NAME.search(name) is not None


def redacted(value: T) -> T:
    """Return a text without secrets, whoever has written it; of plain data, each text in it."""
    secrets = sorted(set(_secrets()), key=len, reverse=True)
    return cast(T, _without(value, secrets))


def _secrets() -> Iterator[str]:
    for name, text in os.environ.items():
        if is_secret(name) and len(text) >= _SHORTEST:
            yield text
    for word, following in zip(sys.argv, [*sys.argv[1:], ""], strict=True):
        flag, _, text = word.partition("=")
        if _FLAG.fullmatch(flag):
            yield from (given for given in (text or following,) if given)


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
