"""A call that is captured in a graph and replayed, as a server's decode steps are."""

import torch
from torch import Tensor

from sglang_fl.conformance.call import bits, computed, differ, title
from sglang_fl.conformance.memory import Snapshot
from sglang_fl.ops import Case, Kernel, Op, Outputs
from sglang_fl.ops.op import Arguments

__all__ = ["graph_faults", "why_no_graph"]

#: Each replay is given the arguments of another seed. A second one sees what the first has left behind.
REPLAYS = (1, 2)


def why_no_graph(device: str) -> str | None:
    """Return None where a device can capture graphs, else the reason."""
    if torch.device(device).type == "cpu":
        return "a CPU captures no graphs"
    module = torch.get_device_module(device)
    missing = [name for name in ("graph", _graph_class(device)) if not hasattr(module, name)]
    return f"torch.{torch.device(device).type} has no {' and no '.join(missing)}" if missing else None


def _graph_class(device: str) -> str:
    return f"{torch.device(device).type.upper()}Graph"


def graph_faults(
    op: Op, kernel: Kernel, case: Case, dtype: torch.dtype, device: str
) -> list[str] | str | None:
    """Capture a call and replay it on other arguments in the same memory, beside plain calls with them.

    Before a replay the results are overwritten: whatever it leaves out shows.

    Returns
    -------
    list of str : what is wrong with the replays
    str : why it cannot be captured
    None : the kernel refused
    """
    if computed(op, kernel, case.arguments(dtype, device)) is None:
        return None
    where, given = title(op, case, dtype), case.arguments(dtype, device)
    module = torch.get_device_module(device)
    module.synchronize()  # that call has compiled and tuned what it needs; a capture could not
    graph = getattr(module, _graph_class(device))()
    outputs = None
    try:
        # A capture that fails leaves its stream the current one.
        with module.stream(module.current_stream()), module.graph(graph):
            outputs = computed(op, kernel, given)
    except RuntimeError as error:
        return f"{where}: it cannot be captured in a graph: {_cause(error)}"
    if outputs is None:
        return f"{where}: it refuses to be captured in a graph"
    faults = []
    for seed in REPLAYS:
        fresh = case.arguments(dtype, device, seed)
        expected = bits(op, computed(op, kernel, fresh), fresh)
        _poison(outputs)
        _fill(given, case.arguments(dtype, device, seed))
        snapshot = Snapshot(op, given)
        graph.replay()
        module.synchronize()
        if differ(expected, bits(op, outputs, given)):
            faults.append(f"{where}: replay {seed} of its graph gives other bits than a call")
        faults += [f"{where}: by replay {seed}: {fault}" for fault in snapshot.faults(op.may_write(given))]
    return faults


def _cause(error: BaseException) -> str:
    """Return the first line of what began it: the end of a failed capture raises once more."""
    while error.__context__ is not None:
        error = error.__context__
    return str(error).partition("\n")[0] or type(error).__name__


def _poison(outputs: Outputs) -> None:
    for tensor in (outputs,) if isinstance(outputs, Tensor) else outputs:
        if tensor.is_floating_point():
            tensor.fill_(torch.nan)
        else:
            tensor.fill_(True if tensor.dtype is torch.bool else torch.iinfo(tensor.dtype).max)


def _fill(given: Arguments, fresh: Arguments) -> None:
    """Give the arguments new values in the memory that they have."""
    for name, value in fresh.items():
        if isinstance(value, Tensor):
            given[name].copy_(value)
