"""A profile for people: lines of at most 80 characters, whose shares add up to a hundred per cent."""

import re
import textwrap
from collections.abc import Iterator, Sequence

from sglang_fl.profiling.labels import DECODE, PREFILL
from sglang_fl.profiling.pieces import OURS, Piece, Who
from sglang_fl.profiling.profile import Profile
from sglang_fl.profiling.shares import Phase, Share, aten_shares

__all__ = ["WIDTH", "as_lines", "named", "span"]

WIDTH = 80
#: Pieces with a smaller part of every phase are one row.
SMALL = 0.005
#: ATen ops and pieces that are named below the table.
MOST_ATEN, MOST_LEFT = 3, 3
_NOTHING = "-"
_GLUE = "\x1f"


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
    whole = re.sub(r"(?<=\d) (?=%|(?:us|ms|s)\b)", _GLUE, text)  # a number stays with its unit
    for line in textwrap.wrap(whole, WIDTH, subsequent_indent="  ", break_on_hyphens=False):
        yield line.replace(_GLUE, " ")


def _table(phases: Sequence[Phase]) -> Iterator[str]:
    """Yield a row for each piece, with its share and time in each phase."""
    shown = [phase for phase in phases if phase.name in (DECODE, PREFILL)] or list(phases[:2])
    by_piece = [{share.piece: share for share in phase.shares} for phase in shown]
    pieces = list(dict.fromkeys(share.piece for phase in shown for share in phase.shares))
    large = [p for p in pieces if any(p in found and found[p].share >= SMALL for found in by_piece)]
    small = [p for p in pieces if p not in large]
    if len(small) == 1:  # a row of its own takes no more room
        large, small = [*large, *small], []
    columns = [_column(found, large, small) for found in by_piece]
    yield "".join(f"{phase.name:>16}" for phase in shown)
    yield "".join("   share us/step" for _ in shown) + " by         what"
    for number, piece in enumerate(large):
        cells = "".join(column[number] for column in columns)
        first = next(found[piece] for found in by_piece if piece in found)
        yield f"{cells} {piece.who.value:<10} {named(first, WIDTH - len(cells) - 12)}"
    if small:
        yield f"{''.join(column[-1] for column in columns)} {'':<10} {len(small)} smaller pieces"
    totals = "".join(f"  100.0%{_us(phase.busy_us):>8}" for phase in shown)
    yield f"{totals} {'':<10} all that ran"


def _column(found: dict[Piece, Share], large: list[Piece], small: list[Piece]) -> list[str]:
    """Return the cells of one phase, the last one for all small pieces together."""
    groups = [[found[piece]] if piece in found else [] for piece in large]
    groups.append([found[piece] for piece in small if piece in found])
    return [_cells(group) for group in groups]


def _cells(shares: list[Share]) -> str:
    if not shares:
        return f"{_NOTHING:>8}{_NOTHING:>8}"
    return f"{sum(share.percent for share in shares):>7.1f}%{_us(sum(share.us for share in shares)):>8}"


def _us(us: float) -> str:
    if us >= 1e6:  # more digits than the column has
        return f"{us / 1e6:.1f} s"
    return f"{us:.0f}" if us >= 1000 else f"{us:.1f}"


def named(share: Share, most: int) -> str:
    """Return what a piece is, in so many characters; of SGLang's own what it mostly runs, where that fits."""
    name, largest = share.piece.what, share.largest_op.removeprefix("aten::")
    if largest and share.piece.who is Who.SGLANG and len(f"{name}: {largest}") <= most:
        return f"{name}: {largest}"
    return name if len(name) <= most else f"{name[: most - 3]}..."


def _what_is_counted(profile: Profile) -> Iterator[str]:
    unit = "kernels on the device" if profile.is_device else "ops on the CPU"
    if profile.is_blind:
        yield from _wrapped(
            f"WARNING: this PyTorch's profiler sees no {profile.device_type} device. These are times of the "
            f"host, which launches kernels and does not wait for them."
        )
    yield from _wrapped(
        f"Shares are of the time of {unit}, run eagerly, without graphs; what overlaps is counted once."
    )
    waits = "the device waits" if profile.is_device else "Python runs, and no op"
    gaps = " and ".join(
        f"{100 * phase.idle_us / phase.step_us:.1f} % of a {phase.name} step" for phase in profile.phases
    )
    between = "".join(
        f"; between two {phase.name} steps {span(phase.between_us)}"
        for phase in profile.phases
        if phase.between_us
    )
    yield from _wrapped(f"Gaps: in {gaps} {waits}{between}. Watching makes them longer, graphs shorter.")
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
    told = ", ".join(f"{who.value} {phase.percent_of(who):.1f} %" for who in OURS if phase.percent_of(who))
    return f"On ours in {phase.name}: {phase.percent_of(*OURS):.1f} %{f' ({told})' if told else ''}."


def _left(profile: Profile, phase: Phase) -> str:
    found = profile.left(phase)[:MOST_LEFT]
    if not found:
        return f"Not on ours in {phase.name}: no piece of SGLang's own has 1 %."
    hints = [f" (`sglang-fl why {each.our_op}`)" if each.our_op else "" for each in found]
    named = [
        f"{number}. {each.what} {each.percent:.1f} %{hint}"
        for number, (each, hint) in enumerate(zip(found, hints, strict=True), 1)
    ]
    return f"Not on ours in {phase.name}, the largest first: {'; '.join(named)}."
