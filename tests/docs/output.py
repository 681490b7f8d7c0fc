"""Whether a command printed what the page says, apart from what differs between machines and runs."""

import re

__all__ = ["masked", "missing"]

#: What is no promise of a page, and what stands in its place.
MASKS = (
    (r"\x1b\[[0-9;]*m", ""),
    (r"(?:https?://)?(?:localhost|127\.0\.0\.1):\d+", "ADDRESS"),
    (r"\b\d+\.\d+\.\d+[\w.+]*", "VERSION"),
    (r"(?<![\w.])(?:~|\.)?(?:/[\w.+-]+)+/?", "PATH"),
    (r"\b\d+(?:\.\d+)? (?:s|ms|GB|MB)\b", "AMOUNT"),
    (r"\b\d+\.\d+(?:e[-+]\d+)?\b|\b\d+e-\d+\b", "NUMBER"),
    # As many as two sides generate alike, which depends on how a processor rounds.
    (r"\b\d+ log-probabilities\b", "COUNT log-probabilities"),
    (r"[─━]{3,}", "RULE"),
    (r"\s+", " "),
)


def masked(line: str) -> str:
    """Return a line with versions, paths, addresses, times, sizes and measured numbers replaced by words."""
    for pattern, word in MASKS:
        line = re.sub(pattern, word, line)
    return line.strip()


def missing(said: str, printed: str) -> str | None:
    """Return the first line that a page shows and the command did not print; None if it printed all.

    The lines must follow one another as on the page. A line ``...`` stands for any number of lines; what
    comes before the first line and after the last one is free.
    """
    lines = [masked(line) for line in printed.splitlines()]
    place = 0
    for part in re.split(r"^\.\.\.$", said, flags=re.MULTILINE):
        wanted = [masked(line) for line in part.strip("\n").splitlines()]
        found = next((i for i in range(place, len(lines) + 1) if lines[i : i + len(wanted)] == wanted), None)
        if found is None:
            return next((line for line in wanted if line not in lines[place:]), wanted[0])
        place = found + len(wanted)
    return None
