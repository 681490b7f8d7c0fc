"""``sglang-fl verify`` on the command line."""

from pathlib import Path
from typing import Annotated

import typer

from sglang_fl.cli.options import Json
from sglang_fl.cli.printing import LOADING, named, print_json, print_rows, say, working

__all__ = ["verify"]


def verify(
    ops: Annotated[list[str] | None, typer.Argument(metavar="OP", help="Only these ops; else all.")] = None,
    as_json: Json = False,
    references: Annotated[
        bool, typer.Option("--references", help="Check core's references and no vendor's implementations.")
    ] = False,
    certificate: Annotated[
        Path | None,
        typer.Option("--certificate", metavar="FILE", help="Write the result here, for --compare."),
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--compare", metavar="FILE FILE", help="Compare the certificates of two machines."),
    ] = None,
    stress: Annotated[
        bool,
        typer.Option("--stress", help="Also repeat each call 100 times, with spoilt memory and cold caches."),
    ] = False,
    jobs: Annotated[
        int,
        typer.Option(
            "--jobs",
            min=1,
            metavar="N",
            help="Look at N aspects at a time, each in a process of its own, which may crash.",
        ),
    ] = 1,
) -> None:
    """Hold every implementation here against its contract.

    These are the implementations of this machine's vendor, and the references.

    Columns: "checked" names the aspects that were looked at: the op's cases, calls at the edge of its
    contract, the same call twice, calls in a graph. "graphs" is how many calls were captured in a graph and
    replayed. "host us" is the time of a small call on the host, in microseconds.

    Example: sglang-fl verify rms_norm silu_and_mul --certificate chip.json

    Exit code 0: all that is installed was looked at and passes. 1: an implementation fails, or the two
    certificates differ. 2: wrong settings or arguments. 3: nothing fails, but an installed vendor was not
    looked at, because its chip is not here; it is named above the table.
    """
    if compare and (ops or references or certificate or stress or jobs != 1):
        raise typer.BadParameter("--compare reads two certificates and takes no OP and no option but --json")
    with working("verify", LOADING) as progress:
        from sglang_fl.diagnostics import verification

        differences = verification.compare(*map(named, compare)) if compare else None
        if differences is None:
            to = named(certificate) if certificate else None
            found = verification.verify(ops or (), to, references, stress, progress.step, jobs)
    if differences is not None:
        rows, is_equal = differences
        print_rows(rows, as_json, "Differences" if rows else "The two machines agree in all")
        raise typer.Exit(0 if is_equal else 1)
    if as_json:
        print_json({"not_verified": found.not_verified, "implementations": found.rows})
    else:
        for sentence in found.not_verified:
            say(f"not verified: {sentence}")
        print_rows(found.rows, False, "Conformance", ("faults", "not_checked"))
    raise typer.Exit(found.code)
