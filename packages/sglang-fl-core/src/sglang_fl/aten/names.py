"""Which ATen ops a user means: both spellings, one overload or all of them.

====================  ===========================================================================
``mul.Tensor``        that overload
``aten::mul.Tensor``  the same
``mm.default``        the overload without a name of its own, as PyTorch calls it
``aten::mul``         all overloads of ``mul``
``mul``               what FlagGems' function ``mul`` replaces; where no function is called so, as
                      ``aten::mul``
``all``               alone in a white list: every op that the vendor has a kernel for; the op of this
                      name is ``aten::all``
====================  ===========================================================================
"""

from collections.abc import Iterable, Sequence

from sglang_fl.errors import SettingsError, nearest, quoted
from sglang_fl.vendor import AtenOp

__all__ = ["ALL", "find", "find_all", "find_white"]

#: In a white list: every op.
ALL = "all"
_NAMESPACE = "aten::"


def find(name: str, ops: Sequence[AtenOp]) -> tuple[AtenOp, ...]:
    """Return the ops that a name means, in the order of ``ops``; none if there is none.

    Parameters
    ----------
    name : in either spelling
    ops : those that a vendor offers
    """
    bare = name.removeprefix(_NAMESPACE)
    by_function = tuple(op for op in ops if op.name == name)
    exact = tuple(op for op in ops if op.exact == f"{_NAMESPACE}{bare}")
    every = tuple(op for op in ops if op.overload.partition(".")[0] == bare)
    return by_function or (exact if "." in bare else every)


def find_all(names: Iterable[str], ops: Sequence[AtenOp], title: str) -> dict[str, tuple[AtenOp, ...]]:
    """Return what each name means.

    Parameters
    ----------
    names : in either spelling
    ops : those that a vendor offers
    title : the setting they stand in, as an error quotes it: ``SGLANG_FL_FLAGOS_WHITELIST='mm'``

    Raises
    ------
    SettingsError : a name that means nothing, with the nearest one
    """
    found: dict[str, tuple[AtenOp, ...]] = {}
    for name in names:
        found[name] = find(name, ops)
        if not found[name]:
            raise SettingsError(
                f"{title}: the vendor's kernels replace no ATen op {quoted(name)}.{_nearest(name, ops)} "
                f"`sglang-fl ops --aten` lists them."
            )
    return found


def find_white(names: Sequence[str], ops: Sequence[AtenOp], title: str) -> dict[str, tuple[AtenOp, ...]]:
    """Return what each name of a white list means; as ``find_all``, and ``all`` stands for every op.

    Raises
    ------
    SettingsError : as ``find_all``; ``all`` beside other names, which may mean every op or that of this name
    """
    if tuple(names) == (ALL,):
        return {ALL: tuple(ops)}
    if ALL in names:
        raise SettingsError(
            f"{title}: 'all' stands for every ATen op, and must stand alone. Write aten::all for the op of "
            "this name."
        )
    return find_all(names, ops, title)


def _nearest(name: str, ops: Sequence[AtenOp]) -> str:
    namespace = _NAMESPACE if name.startswith(_NAMESPACE) else ""
    bare = name.removeprefix(_NAMESPACE)
    spelled = {op.name for op in ops} if not namespace else set[str]()
    known = spelled | {op.overload for op in ops} | {op.overload.partition(".")[0] for op in ops}
    near = nearest(bare, sorted(known))
    return f" Nearest: {namespace}{near}." if near else ""
