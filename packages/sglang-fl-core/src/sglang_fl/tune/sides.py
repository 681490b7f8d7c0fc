"""Which engines are measured beside each other, and what follows from them. Nothing here runs anything."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from sglang_fl.ops.catalogue import PARTS
from sglang_fl.settings.policy import SGLANG
from sglang_fl.tune.aten_decide import ListChange
from sglang_fl.tune.decide import Compared, OpVerdict, Starts, compare_engines

__all__ = [
    "CONTROL",
    "LAYER_1",
    "PRESENT",
    "Alternative",
    "Outcome",
    "alternatives",
    "decide_engines",
    "order_of",
]

#: The engines of the present choice, and the same once more.
PRESENT, CONTROL = "present", "control"
#: The setting that switches the vendor's ATen kernels. Among the orders of ops stands its "0", or their list.
LAYER_1 = "use_flaggems"

#: Orders by op, as the file writes them.
Orders = Mapping[str, str]


@dataclass(frozen=True)
class Alternative:
    """An engine with another choice.

    Parameters
    ----------
    name : for people, and for its starts
    orders : its choice
    beside : the name of the engine that it is compared with
    op : the one op in which it differs from that one; empty for the kernels together
    added : ATen ops that it replaces and the present choice does not
    """

    name: str
    orders: Orders
    beside: str = PRESENT
    op: str = ""
    added: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name}, beside {self.beside}"


def order_of(impl: str) -> str:
    """Return the order by which an implementation runs, and SGLang's own where it refuses a call."""
    return SGLANG if impl == SGLANG else f"impl:{impl}|{SGLANG}"


def alternatives(
    verdicts: Sequence[OpVerdict],
    with_sglang: bool,
    with_layer_1: bool = False,
    aten: ListChange | None = None,
) -> tuple[Alternative, ...]:
    """Return the engines to try: all proposed kernels together, and what has no time of its own one by one.

    Parameters
    ----------
    verdicts : of the ops that the model calls
    with_sglang : whether SGLang's own path is tried in the place of each of our kernels
    with_layer_1 : whether the ATen ops that are replaced at present are tried as PyTorch's, all of them
    aten : what is proposed for single ATen ops, which is tried on top of the kernels
    """
    presents = {verdict.op: verdict.present for verdict in verdicts}
    faster = {v.op: order_of(v.best) for v in verdicts if v.best is not None and v.gain is not None}
    found = []
    base = PRESENT
    if faster:
        base = _name(faster)
        found.append(Alternative(base, _with_wholes(faster, presents)))

    def on_top(op: str, order: str, name: str = "", added: tuple[str, ...] = ()) -> None:
        orders = {**faster, op: order}
        name = ";".join([*([base] if faster else []), name]) if name else _name(orders)
        found.append(Alternative(name, _with_wholes(orders, presents), base, op, added))

    if aten is not None:
        on_top(LAYER_1, aten.order, str(aten), aten.added)
    for verdict in verdicts:
        other = _without_time(verdict, with_sglang)
        if other is not None:
            on_top(verdict.op, order_of(other))
    if with_layer_1 and (aten is None or aten.order != "0"):
        on_top(LAYER_1, "0")
    return tuple(found)


def _name(orders: Orders) -> str:
    return ";".join(f"{op}={order.partition('|')[0].removeprefix('impl:')}" for op, order in orders.items())


def _without_time(verdict: OpVerdict, with_sglang: bool) -> str | None:
    """Return what can be told of an op by an engine alone, or None."""
    if verdict.present == SGLANG:
        return verdict.best
    return SGLANG if with_sglang else None


def _with_wholes(orders: Orders, presents: Mapping[str, str]) -> Orders:
    """Add the order of an op that stands for others: naming one of these would turn it off."""
    wholes = {
        whole: order_of(presents[whole])
        for whole, parts in PARTS.items()
        if presents.get(whole, SGLANG) != SGLANG and any(part in orders for part in parts)
    }
    return {**wholes, **orders}


@dataclass(frozen=True)
class Outcome:
    """What follows from the engines.

    Parameters
    ----------
    orders : the choice that is worth writing; empty where all stays as it is
    compared : what was found, by the alternative's name
    whole : this very choice beside the present one, where that is confirmed; else None
    control : the present choice beside itself
    """

    orders: Orders
    compared: Mapping[str, Compared]
    whole: Compared | None
    control: Compared


def decide_engines(tried: Sequence[Alternative], starts: Mapping[str, Starts]) -> Outcome:
    """Decide which alternatives are confirmed.

    Parameters
    ----------
    tried : the engines, as ``alternatives`` returns them
    starts : those of each engine that has run, with those of ``PRESENT`` and ``CONTROL``
    """
    control = (starts[PRESENT], starts[CONTROL])
    compared = {
        side.name: compare_engines(starts[side.beside], starts[side.name], control)
        for side in tried
        if starts.get(side.name) and starts.get(side.beside)
    }
    orders = _confirmed(tried, compared)
    same = [side.name for side in tried if orders and side.orders == orders and starts.get(side.name)]
    wholes = (compare_engines(starts[PRESENT], starts[name], control) for name in same)
    whole = next((found for found in wholes if found.is_confirmed), None)
    return Outcome(orders, compared, whole, compare_engines(*control))


def _confirmed(tried: Sequence[Alternative], compared: Mapping[str, Compared]) -> Orders:
    """Return the orders of all confirmed alternatives; those on top of the kernels count only with them."""
    confirmed = {side.name for side in tried if side.name in compared and compared[side.name].is_confirmed}
    good = _best_of_each_op(tried, compared, confirmed)
    orders: dict[str, str] = {}
    for side in tried:
        if side.name in good and (side.beside == PRESENT or side.beside in good):
            new = side.orders if not orders else {side.op: side.orders[side.op]}
            orders |= {**new, **{op: order for op, order in side.orders.items() if op not in orders}}
    return orders


def _best_of_each_op(
    tried: Sequence[Alternative], compared: Mapping[str, Compared], good: Collection[str]
) -> set[str]:
    """Return the fastest of the good alternatives for each op: a list of ATen ops excludes none of them."""
    best: dict[str, str] = {}
    for side in tried:
        known = best.get(side.op)
        if side.name in good and (known is None or compared[side.name].mean > compared[known].mean):
            best[side.op] = side.name
    return set(best.values())
