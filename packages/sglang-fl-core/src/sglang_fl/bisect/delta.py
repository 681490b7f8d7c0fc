"""Delta debugging: the smallest set of units that still fails."""

from collections.abc import Callable, Sequence

__all__ = ["smallest_failing"]


def smallest_failing(units: Sequence[str], fails: Callable[[tuple[str, ...]], bool]) -> tuple[str, ...]:
    """Return a smallest subset that fails: none of its units can be left out.

    About two passes for each halving where one unit is guilty; a few more where several fail only together.

    Source: Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", 2002 (``ddmin``).

    Parameters
    ----------
    units : all of them together fail
    fails : asked at most once for each subset
    """
    known: dict[frozenset[str], bool] = {frozenset(units): True, frozenset(): False}

    def ask(subset: tuple[str, ...]) -> bool:
        key = frozenset(subset)
        if key not in known:
            known[key] = fails(subset)
        return known[key]

    left, parts = tuple(units), 2
    while len(left) > 1:
        smaller = _reduced(left, parts, ask)
        if smaller is not None:
            left, parts = smaller
        elif parts >= len(left):
            break
        else:
            parts = min(len(left), 2 * parts)
    return left


def _reduced(
    left: tuple[str, ...], parts: int, fails: Callable[[tuple[str, ...]], bool]
) -> tuple[tuple[str, ...], int] | None:
    """Return a part that fails by itself, or what fails without one; and into how many to split that."""
    chunks = [left[len(left) * i // parts : len(left) * (i + 1) // parts] for i in range(parts)]
    for chunk in chunks:
        if fails(chunk):
            return chunk, 2
    for chunk in chunks if parts > 2 else ():
        rest = tuple(unit for unit in left if unit not in chunk)
        if fails(rest):
            return rest, max(parts - 1, 2)
    return None
