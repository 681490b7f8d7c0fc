"""``CHECKS``, the catalogue: what doctor looks at, in the order of a table of symptoms."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from sglang_fl.diagnostics.doctor.attention import attention
from sglang_fl.diagnostics.doctor.collective import collective
from sglang_fl.diagnostics.doctor.collective_kernels import collective_kernels
from sglang_fl.diagnostics.doctor.configured import settings, targets, vendors
from sglang_fl.diagnostics.doctor.device_backends import device_backends
from sglang_fl.diagnostics.doctor.devices import devices, numa
from sglang_fl.diagnostics.doctor.finding import Finding, State, unknown
from sglang_fl.diagnostics.doctor.flag_gems_database import flag_gems_database
from sglang_fl.diagnostics.doctor.grouped_heads import grouped_heads
from sglang_fl.diagnostics.doctor.heads import heads
from sglang_fl.diagnostics.doctor.installation import entry_points, installation, selection
from sglang_fl.diagnostics.doctor.kernel_caches import flag_gems_cache, triton_cache
from sglang_fl.diagnostics.doctor.launch import Launch
from sglang_fl.diagnostics.doctor.layer_1 import aten_record, flag_gems, layer_1
from sglang_fl.diagnostics.doctor.layer_2 import dispatch_log, kept_calls, layer_2
from sglang_fl.diagnostics.doctor.layer_classes import layer_classes, operators
from sglang_fl.diagnostics.doctor.memory import memory
from sglang_fl.diagnostics.doctor.network import interfaces, ports, rendezvous, variables_of_collectives
from sglang_fl.diagnostics.doctor.packages import copies, flag_gems_pins, shadow, torch_pins
from sglang_fl.diagnostics.doctor.sgl_kernel import sgl_kernel
from sglang_fl.diagnostics.doctor.sglang_kernels import kernel_faults, kernel_plugins
from sglang_fl.diagnostics.doctor.sglang_plugins import sglang_plugins
from sglang_fl.diagnostics.doctor.sglang_release import sglang_loads_the_plugin, sglang_release
from sglang_fl.errors import SettingsError, choices
from sglang_fl.logs.redaction import redacted

__all__ = ["CHECKS", "Row", "examine", "exit_code"]

Check = Callable[[Launch], Iterable[Finding]]

CHECKS: tuple[Check, ...] = (
    # The dispatch log is empty.
    installation,
    entry_points,
    selection,
    sglang_plugins,
    sglang_release,
    settings,
    vendors,
    targets,
    layer_2,
    dispatch_log,
    kept_calls,
    sglang_loads_the_plugin,
    # The record of ATen ops is empty.
    layer_1,
    aten_record,
    flag_gems,
    # A forward_cuda error on another chip; ImportError: sgl_kernel.
    operators,
    layer_classes,
    sgl_kernel,
    # Numbers differ, or a layer class has no line.
    kernel_faults,
    kernel_plugins,
    # tp > 1 hangs at start-up.
    devices,
    numa,
    heads,
    ports,
    rendezvous,
    interfaces,
    variables_of_collectives,
    collective_kernels,
    collective,
    # Out of memory at start.
    memory,
    # Wrong numbers, or a request that ends the server.
    attention,
    grouped_heads,
    # What else has been met.
    copies,
    shadow,
    device_backends,
    torch_pins,
    flag_gems_pins,
    triton_cache,
    flag_gems_cache,
    flag_gems_database,
)

_URGENCY = (State.PROBLEM, State.UNKNOWN, State.OK)


@dataclass(frozen=True)
class Row:
    """A finding and the check that made it.

    Parameters
    ----------
    check : the check's name on the command line
    finding : no secret of the environment stands in it
    """

    check: str
    finding: Finding


def _name(check: Check) -> str:
    return getattr(check, "__name__", str(check)).replace("_", "-")


def examine(launch: Launch, only: Sequence[str], say: Callable[[str], None]) -> list[Row]:
    """Run the checks; problems come first, then what could not be told.

    Parameters
    ----------
    launch : the start that is asked about
    only : the names of the checks to run; all if empty
    say : told of each check before it runs

    Raises
    ------
    SettingsError : a name of no check
    """
    by_name = {_name(check): check for check in CHECKS}
    for name in only:
        if name not in by_name:
            raise SettingsError(f"there is no check {name!r}. {choices(name, by_name)}")
    chosen = {name: check for name, check in by_name.items() if not only or name in only}
    rows = []
    for number, (name, check) in enumerate(chosen.items(), 1):
        say(f"{name} ({number} of {len(chosen)})")
        found = [Row(name, _redacted(finding)) for finding in _findings(name, check, launch)]
        rows += found or ([Row(name, _nothing_to_see(check))] if only else [])
    return sorted(rows, key=lambda row: _URGENCY.index(row.finding.state))


def _nothing_to_see(check: Check) -> Finding:
    """Return the finding of a check that the user asked for and that had nothing to look at."""
    question = (check.__doc__ or "").splitlines()[0]
    text = f"not looked at: {question}"
    return unknown(
        _name(check), text, "this vendor and these options leave it nothing to look at: see --help"
    )


def _findings(name: str, check: Check, launch: Launch) -> Iterator[Finding]:
    try:
        yield from check(launch)
    except Exception as error:  # noqa: BLE001 - a broken machine raises anything; the other checks still count
        yield unknown(name, f"the check itself failed: {type(error).__name__}: {error}")


def _redacted(finding: Finding) -> Finding:
    return Finding(finding.what, finding.state, redacted(finding.text), redacted(finding.remedy))


def exit_code(rows: Iterable[Row]) -> int:
    """Return 1 where there is a problem, 2 where something, or all, could not be told, else 0."""
    states = {row.finding.state for row in rows}
    if State.PROBLEM in states:
        return 1
    return 2 if State.UNKNOWN in states or not states else 0
