"""What ``sglang-fl doctor`` answers, as the fixture ``doctor`` returns it."""

from collections.abc import Callable

__all__ = ["Answer", "Doctor", "only_problem"]

#: Its exit code, and its rows by subject.
Answer = tuple[int, dict[str, dict[str, str]]]
Doctor = Callable[..., Answer]


def only_problem(told: Answer, what: str) -> dict[str, str]:
    """Return the row of a subject, which must be a problem with a remedy."""
    code, rows = told
    assert (code, rows[what]["state"]) == (1, "problem"), rows
    assert rows[what]["remedy"]
    return rows[what]
