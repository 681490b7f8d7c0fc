"""The commands that list what is installed and what would run: nothing of them runs a kernel."""

from typing import Annotated

import typer

from sglang_fl.cli.options import Json
from sglang_fl.cli.printing import LOOKING, print_json, print_rows, say, working

__all__ = ["coverage", "env", "ops", "vendors", "why"]


def env(
    as_json: Json = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the table of docs/configure.md instead.")
    ] = False,
) -> None:
    """Each setting, its value, and where it came from.

    Example: SGLANG_FL_PREFER=vendor sglang-fl env

    Exit code 0: printed. 2: a setting is wrong; one line says which.
    """
    if markdown:
        from sglang_fl.settings import markdown_table

        typer.echo(markdown_table())
        return
    from sglang_fl.diagnostics import report

    with working("env", LOOKING, on_terminals_alone=True):
        rows = report.env()
    print_rows(rows, as_json, "Settings")


def vendors(as_json: Json = False) -> None:
    """The installed vendor packages, and why one is not available.

    Example: sglang-fl vendors --json

    Exit code 0: printed. 2: a setting, or a package itself, is wrong; one line says which.
    """
    from sglang_fl.diagnostics import report

    with working("vendors", LOOKING, on_terminals_alone=True):
        rows = report.vendors()
    print_rows(rows, as_json, "Vendors")


def ops(
    as_json: Json = False,
    aten: Annotated[
        bool, typer.Option("--aten", help="PyTorch's ATen ops (layer 1) instead of the fused ones.")
    ] = False,
) -> None:
    """What would run each op here, and what next if that failed.

    Example: SGLANG_FL_PREFER=vendor sglang-fl ops

    Exit code 0: printed. 2: a setting or a package is wrong; one line says which.
    """
    from sglang_fl.diagnostics import report

    with working("ops", LOOKING, on_terminals_alone=True):
        off = report.why_aten_is_off() if aten else None
        rows = report.aten_ops() if aten else report.ops()
    if aten:
        title = f"ATen ops: {off}" if off else "ATen ops that the vendor has kernels for"
        print_rows(rows, as_json, title)
    else:
        print_rows(rows, as_json, "Ops", ("not_found",), labels=1)


def why(
    op: Annotated[str, typer.Argument(metavar="OP", help="An op, as `sglang-fl ops` names it: rms_norm.")],
    as_json: Json = False,
) -> None:
    """What would run OP, in which order, and why not the others.

    Example: sglang-fl why rms_norm

    Exit code 0: printed. 2: there is no such op, or a setting or a package is wrong.
    """
    from sglang_fl.diagnostics import report

    with working("why", LOOKING, on_terminals_alone=True):
        answer = report.why(op)
    if as_json:
        print_json(answer)
        return
    on = answer["layer_2"] == "on"
    state = "on" if on else f"off, SGLang runs its own ({answer['layer_2']})"
    say(f"{answer['op']}: {answer['contract']}")
    say(answer["signature"])
    say(f"vendor {answer['vendor']}; order {' | '.join(answer['order'])}; layer 2 {state}")
    if answer["sglang_first"]:
        say(f"SGLang's own runs first: {answer['sglang_first']}")
    print_rows(answer["candidates"], False, "Candidates, in order")
    for rows, title in ((answer["not"], "Not candidates"), (answer["quarantine"], "Quarantine")):
        if rows:
            print_rows(rows, False, title)


def coverage(as_json: Json = False) -> None:
    """SGLang's fused layers that are dispatched, and its shortcuts.

    A shortcut is a path of SGLang's past a layer: one kernel for several layers.

    Example: sglang-fl coverage --json

    Exit code 0: printed. 2: SGLang cannot be read, or a setting or a package is wrong.
    """
    from sglang_fl.diagnostics import report

    with working("coverage", "reading the layers of SGLang"):
        found = report.coverage()
    if as_json:
        print_json(found)
        return
    print_rows(found["layer_classes"], False, "Layer classes")
    say("Shortcuts of SGLang past them")
    for row in found["shortcuts"]:
        say(f"{row['shortcut']}: past {', '.join(row['past'])}, {row['releases']}")
        for key in ("where", "taken", "off_where_the_op_is_named", "wrong"):
            if row[key]:
                say(f"    {key.replace('_', ' ')}: {row[key]}")
    if found["kernel_plugins"]:
        print_rows(
            found["kernel_plugins"], False, "Kernel plugins of others; the dispatch log tells which ran"
        )
