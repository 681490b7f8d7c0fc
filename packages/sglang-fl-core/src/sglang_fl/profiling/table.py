"""A profile for people: lines of at most 80 characters, whose shares add up to a hundred per cent."""

import textwrap
from collections.abc import Iterator, Sequence

from sglang_fl.profiling.labels import DECODE, PREFILL
from sglang_fl.profiling.pieces import Piece, Who
from sglang_fl.profiling.profile import Profile
from sglang_fl.profiling.shares import Phase, Share, aten_shares

__all__ = ["WIDTH", "as_lines", "percents", "span"]

WIDTH = 80
#: Pieces with a smaller part of every phase are one row.
SMALL = 0.005
#: ATen ops and pieces that are named below the table.
MOST_ATEN, MOST_LEFT = 4, 5
_NOTHING = "-"


def as_lines(profile: Profile) -> Iterator[str]:
    """Return what is printed."""
    software = ", ".join(f"{name} {version}" for name, version in profile.software.items())
    ranks = f", {profile.ranks} ranks" if profile.ranks > 1 else ""
    yield from _wrapped(f"{profile.model} on {profile.device}{ranks}: {software}")
    for phase in profile.phases:
        yield from _wrapped(_size(phase, profile.is_device))
    yield ""
    yield from _table(profile.phases)
    yield ""
    yield from _what_is_counted(profile)
    for phase in profile.phases:
        yield from _aten(phase)
    yield ""
    for phase in profile.phases:
        yield from _wrapped(_ours(phase))
    for phase in profile.phases:
        yield from _wrapped(_left(profile, phase))


def percents(parts: Sequence[float]) -> list[float]:
    """Return shares as per cent with one decimal, so rounded that they add up to what their sum rounds to."""
    tenths = [int(part * 1000) for part in parts]
    missing = round(sum(parts) * 1000) - sum(tenths)
    by_rest = sorted(range(len(parts)), key=lambda index: tenths[index] - parts[index] * 1000)
    for index in by_rest[:missing]:
        tenths[index] += 1
    return [each / 10 for each in tenths]


def span(us: float) -> str:
    """Return a time in the unit that suits it."""
    if us >= 1e6:
        return f"{us / 1e6:.2f} s"
    return f"{us / 1e3:.2f} ms" if us >= 1e3 else f"{us:.1f} us"


def _size(phase: Phase, is_device: bool) -> str:
    steps = f"{phase.steps} steps" if phase.steps > 1 else "1 step"
    tokens = f", {phase.tokens:g} tokens" if phase.name != DECODE else ""
    what = "kernels" if is_device else "ops"
    return (
        f"{phase.name}: {steps} of {phase.requests:g} requests{tokens}; a step takes {span(phase.step_us)}, "
        f"its {what} {span(phase.busy_us)}"
    )


def _wrapped(text: str) -> Iterator[str]:
    yield from textwrap.wrap(text, WIDTH, subsequent_indent="  ", break_on_hyphens=False)


def _table(phases: Sequence[Phase]) -> Iterator[str]:
    """Yield a row for each piece, with its share and time in each phase."""
    shown = [phase for phase in phases if phase.name in (DECODE, PREFILL)] or list(phases[:2])
    by_piece = [{share.piece: share for share in phase.shares} for phase in shown]
    pieces = list(dict.fromkeys(share.piece for phase in shown for share in phase.shares))
    large = [p for p in pieces if any(p in found and found[p].share >= SMALL for found in by_piece)]
    small = [p for p in pieces if p not in large]
    columns = [_column(found, large, small) for found in by_piece]
    yield "".join(f"{phase.name:>17}" for phase in shown)
    yield "".join("   share  us/step" for _ in shown) + "  by           what"
    for number, piece in enumerate(large):
        cells = "".join(column[number] for column in columns)
        yield f"{cells}  {piece.who.value:<11}  {_named(piece, by_piece)}"[:WIDTH].rstrip()
    if small:
        yield f"{''.join(column[-1] for column in columns)}  {'':<11}  {len(small)} smaller pieces"
    totals = "".join(f"  100.0%{_us(phase.busy_us):>9}" for phase in shown)
    yield f"{totals}  {'':<11}  all that ran"


def _column(found: dict[Piece, Share], large: list[Piece], small: list[Piece]) -> list[str]:
    """Return the cells of one phase, the last one for all small pieces together."""
    rest = [found[piece] for piece in small if piece in found]
    parts = [found[piece].share if piece in found else 0.0 for piece in large]
    times = [found[piece].us if piece in found else 0.0 for piece in large]
    parts.append(sum(share.share for share in rest))
    times.append(sum(share.us for share in rest))
    return [
        f"{percent:>7.1f}%{_us(us):>9}" if us else f"{_NOTHING:>8}{_NOTHING:>9}"
        for percent, us in zip(percents(parts), times, strict=True)
    ]


def _us(us: float) -> str:
    return f"{us:.0f}" if us >= 1000 else f"{us:.1f}"


def _named(piece: Piece, by_piece: list[dict[Piece, Share]]) -> str:
    """Return what a piece is, and of SGLang's own what it mostly runs."""
    if piece.who is not Who.SGLANG:
        return piece.what
    largest = next(found[piece].largest_op for found in by_piece if piece in found)
    return f"{piece.what}: {largest}" if largest else piece.what


def _what_is_counted(profile: Profile) -> Iterator[str]:
    unit = "kernels on the device" if profile.is_device else "ops on the CPU"
    yield from _wrapped(
        f"Shares are of the time of {unit}, run eagerly, without graphs; what overlaps is counted once."
    )
    waits = "the device waits" if profile.is_device else "the CPU runs no op but Python"
    gaps = ", ".join(
        f"{100 * phase.idle_us / phase.step_us:.1f} % of a {phase.name} step" for phase in profile.phases
    )
    yield from _wrapped(f"Gaps: {waits} {gaps}. Watching makes them longer, graphs shorter.")
    if profile.outside_us:
        yield from _wrapped(f"Launched in no step, and in no share: {span(profile.outside_us)} in all.")


def _aten(phase: Phase) -> Iterator[str]:
    rows = aten_shares(phase)
    parts = {
        "by layer 1": [row for row in rows if row.who.is_ours],
        "by PyTorch": [row for row in rows if not row.who.is_ours],
    }
    said = []
    for title, found in parts.items():
        largest = ", ".join(f"{row.op} {100 * row.share:.1f} %" for row in found[:MOST_ATEN])
        whole = 100 * sum(row.share for row in found)
        said.append(f"{title} {whole:.1f} %{f' ({largest})' if largest else ''}")
    yield from _wrapped(f"ATen ops in {phase.name}, beside those in our kernels: {'; '.join(said)}.")


def _ours(phase: Phase) -> str:
    kinds = ", ".join(
        f"{who.value} {100 * phase.share_of(who):.1f} %" for who in (Who.FLAGOS, Who.VENDOR, Who.REFERENCE)
    )
    return f"Ours in {phase.name}: {100 * phase.ours:.1f} % ({kinds})."


def _left(profile: Profile, phase: Phase) -> str:
    found = profile.left(phase)[:MOST_LEFT]
    if not found:
        return f"Passing us by in {phase.name}: no piece of SGLang's own has 1 %."
    hints = [f" (`sglang-fl why {each.our_op}`)" if each.our_op else "" for each in found]
    named = [
        f"{number}. {each.what} {100 * each.share:.1f} %{hint}"
        for number, (each, hint) in enumerate(zip(found, hints, strict=True), 1)
    ]
    return f"Passing us by in {phase.name}, the largest first: {'; '.join(named)}."
