"""``sglang-fl new-vendor`` on the command line."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from sglang_fl.cli.options import Json
from sglang_fl.cli.printing import exit_on_error, named, print_json, say
from sglang_fl.errors import SettingsError

__all__ = ["new_vendor"]


def new_vendor(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The vendor's name, in lower case.")],
    device_type: Annotated[
        str, typer.Option("--device-type", metavar="TYPE", help="PyTorch's name of the device.")
    ],
    source: Annotated[
        str | None,
        typer.Option("--from", metavar="SOURCE", help="flag_gems: list what FlagGems has for the chip too."),
    ] = None,
    into: Annotated[
        Path, typer.Option("--into", metavar="FOLDER", help="The folder to write the package in.")
    ] = Path(),
    as_json: Json = False,
) -> None:
    """Write the package of a new vendor, sglang-fl-NAME.

    It passes `sglang-fl verify` as it is: on the simulated chip, as long as there is none, by
    SGLANG_FL_SIMULATED=NAME sglang-fl verify.

    Example: sglang-fl new-vendor acme --device-type npu

    Exit code 0: written. 2: the name or the device cannot be one, or the folder exists or cannot be written.
    """
    from sglang_fl.scaffold import write_package

    with exit_on_error():
        folder = named(into) / f"sglang-fl-{name}"
        if source not in (None, "flag_gems"):
            raise SettingsError(f"--from {source!r}: valid is flag_gems")
        files = write_package(name, device_type, folder, with_flag_gems=source is not None)
    # Of one op: all of them take minutes, core's references included.
    verify = f"SGLANG_FL_SIMULATED={name} sglang-fl verify silu_and_mul"
    following = f"pip install -e {shlex.quote(str(folder))} && {verify}"
    if as_json:
        names = sorted(str(file.relative_to(folder)) for file in files)
        print_json({"folder": str(folder), "files": names, "next": following})
        return
    say(f"{folder}: {len(files)} files. What to change is listed in its README.md. Next:\n{following}")
