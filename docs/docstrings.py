"""A Sphinx extension: parameters of our docstrings are ``name : what it is``, their types are annotated.

NumPy's form has the type behind the colon. Napoleon would print our words as one, and look for pages of them.
"""

import re
from collections.abc import Iterator

from sphinx.application import Sphinx

__all__ = ["described", "setup"]

_SECTION = re.compile(r"(Parameters|Raises|Attributes|Returns|Yields)$")
_ITEM = re.compile(r"(\*{0,2}\w[\w, *]*) : (.+)$")


def described(lines: list[str]) -> Iterator[str]:
    """Yield a docstring's lines with what stands behind the colon of an item moved below its name."""
    section = ""
    for line, following in zip(lines, [*lines[1:], ""], strict=False):
        if following and set(following.strip()) == {"-"}:
            section = line.strip()
        item = _ITEM.match(line) if _SECTION.match(section) else None
        if item:
            yield item[1]
            yield f"    {item[2]}"
        else:
            yield line


def _process(app: Sphinx, what: str, name: str, found: object, options: object, lines: list[str]) -> None:
    lines[:] = described(lines)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension, before Napoleon's own turn."""
    app.connect("autodoc-process-docstring", _process, priority=400)
    return {"parallel_read_safe": True}
