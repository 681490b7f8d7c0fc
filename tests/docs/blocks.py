"""The fenced blocks of a Markdown page: what is to be run, what it should print, and why one is not run.

A block of a language in ``RUNNABLE`` is run unless its info string says why not::

    ```bash {norun="needs a GPU"}
    ```bash {exit=2}

A comment in the page, ``<!-- norun: a record of runs on a GPU -->``, says it of all blocks below it. The
block without a language that follows a runnable one in the same section is what it prints.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

__all__ = ["RUNNABLE", "Block", "read_blocks"]

#: Languages of blocks that are run; TOML is read.
RUNNABLE = ("bash", "python", "yaml", "toml")
_FENCE = re.compile(r"( *)(`{3,})(.*)")
_INFO = re.compile(r'(\S*)\s*(?:\{((?:norun="[^"]+"|exit=\d+|\s)+)\})?')
_NO_RUN = re.compile(r"<!-- norun: (.+) -->")
#: What changes the machine of whoever runs it, beyond the folder and the environment of a page.
_OF_THE_MACHINE = re.compile(r"(?<![\w./-])(?:(?:docker|podman|systemctl|sudo)(?![\w./-])|/etc/|/opt/)")


@dataclass(frozen=True)
class Block:
    """A block to be run.

    Parameters
    ----------
    language : one of ``RUNNABLE``
    line : of its fence in the page, from 1
    code : what stands in it
    why_not : the reason why it is not run
    exit_code : with which it must end
    output : what the page says that it prints
    """

    language: str
    line: int
    code: str
    why_not: str | None = None
    exit_code: int = 0
    output: str | None = None


def read_blocks(page: Path) -> list[Block]:
    """Return a page's runnable blocks in their order.

    Raises
    ------
    ValueError : an info string says something else than ``norun="reason"`` or ``exit=code``, or a block that
        is to be run changes the machine: containers, services, ``/etc``, ``/opt``
    """
    blocks: list[Block] = []
    why_not, is_open = None, False
    for line, text, fenced in _parts(page.read_text(encoding="utf-8")):
        if fenced is None:
            said = _NO_RUN.fullmatch(text.strip())
            why_not = said[1] if said else why_not
            is_open = is_open and not text.startswith("#")
            continue
        language, words = _info(text, f"{page.name}:{line}")
        if language in RUNNABLE:
            reason = words.get("norun", why_not)
            if reason is None:
                _refuse_what_changes_the_machine(fenced, f"{page.name}:{line}")
            blocks.append(Block(language, line, fenced, reason, int(words.get("exit", 0))))
        elif is_open and language in ("", "text") and "norun" not in words:
            blocks[-1] = replace(blocks[-1], output=fenced)
        is_open = language in RUNNABLE
    return blocks


def _refuse_what_changes_the_machine(code: str, where: str) -> None:
    found = _OF_THE_MACHINE.search(code)
    if found:
        text = f"{where}: the block names {found[0]!r} and would be run"
        raise ValueError(f'{text}; valid is {{norun="reason"}} beside its language')


def _parts(text: str) -> Iterator[tuple[int, str, str | None]]:
    """Yield number and text of each line outside of fences; of each fence its info and its content."""
    lines = enumerate(text.splitlines(), 1)
    for number, line in lines:
        fence = _FENCE.match(line)
        if not fence:
            yield number, line, None
            continue
        indent, ticks, info = fence.groups()
        content = []
        for _, inside in lines:
            if inside.strip() == ticks:
                break
            content.append(inside.removeprefix(indent))
        yield number, info.strip(), "\n".join(content) + "\n"


def _info(text: str, where: str) -> tuple[str, dict[str, str]]:
    match = _INFO.fullmatch(text)
    if not match or match[1].startswith("{"):
        if text.startswith("{"):  # a directive of the site
            return text, {}
        raise ValueError(f'{where}: {text!r}: valid are {{norun="reason"}} and {{exit=code}}')
    words = re.findall(r'(norun|exit)=("[^"]+"|\d+)', match[2] or "")
    return match[1], {name: value.strip('"') for name, value in words}
