"""A Sphinx extension: a long name in a table may go on in the next line, behind ``_``, ``.``, ``=`` or ``:``.

Without it a column is as wide as its longest name, and the last columns are cut off.
"""

import re

from sphinx.application import Sphinx

__all__ = ["broken", "setup"]

#: Names of fewer characters stay whole.
LONG = 18
_CELL = re.compile(r"<td.*?</td>", re.DOTALL)
_WORD = re.compile(r'(?<=<span class="pre">)[^<]*(?=</span>)')
_PLACE = re.compile(r"(?<=[_.=:/,|])(?=\w)")


def broken(body: str) -> str:
    """Return a page's HTML with ``<wbr>`` where a long name in a cell of a table may break."""
    return _CELL.sub(lambda cell: _WORD.sub(_places, cell[0]), body)


def _places(word: re.Match[str]) -> str:
    return _PLACE.sub("<wbr>", word[0]) if len(word[0]) >= LONG else word[0]


def _break(app: Sphinx, page: str, template: str, context: dict[str, str], doctree: object) -> None:
    if "body" in context:
        context["body"] = broken(context["body"])


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the extension."""
    app.connect("html-page-context", _break)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
