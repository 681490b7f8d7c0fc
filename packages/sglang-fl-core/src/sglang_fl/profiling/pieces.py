"""Who a stretch of time belongs to: one owner each, the innermost that says who it is."""

import enum
import re
from dataclasses import dataclass

from sglang_fl.profiling.labels import ATEN, ATTENTION, LAYER, SHORTCUT
from sglang_fl.profiling.labels import OURS as KERNEL
from sglang_fl.profiling.trace import Node

__all__ = ["OURS", "OUTSIDE", "Piece", "Who", "op_of", "piece_of"]

#: What runs in a step and in no layer: the model's own lines, and what SGLang does before and after it.
OUTSIDE = "outside of layers"
_COLLECTIVES = re.compile(
    r"nccl|hccl|cncl|c10d::|cross_device_reduce|all_?reduce|all_?gather|reduce_?scatter|all_?to_?all",
    re.IGNORECASE,
)


class Who(enum.Enum):
    """Who ran something."""

    FLAGOS = "flagos"
    VENDOR = "vendor"
    REFERENCE = "reference"
    #: SGLang's and our lines around a kernel of ours, in a layer that is ours.
    AROUND = "around"
    SGLANG = "sglang"
    COLLECTIVE = "collective"
    COPY = "copy"
    #: A kernel of which the trace does not tell who launched it.
    UNKNOWN = "unknown"

    @property
    def is_ours(self) -> bool:
        """Whether it is an implementation of layer 1 or 2."""
        return self in OURS


OURS = (Who.FLAGOS, Who.VENDOR, Who.REFERENCE)


@dataclass(frozen=True)
class Piece:
    """What a share is of.

    Parameters
    ----------
    who : ran it
    what : the op, the layer class, the shortcut
    """

    who: Who
    what: str


def piece_of(node: Node | None, name: str = "", kind: str = "kernel") -> Piece:
    """Return the owner of what an op did on a CPU, or of what a device did.

    In this order: a kernel of ours owns all in it; a collective and a copy are cut out of the layers that
    make them, a copy not of attention, which writes its cache so; then the innermost shortcut or layer.

    Parameters
    ----------
    node : the op, or the place of the launch
    name, kind : of what the device did; without a name it is an op on a CPU
    """
    if node is None:
        return Piece(Who.UNKNOWN, "launched from nowhere that the trace tells")
    for outer in node.outwards():
        if outer.label is not None and outer.label.kind in (KERNEL, ATEN):
            what, who = outer.label.words[:2]
            return Piece(Who(who), what)
    if _is_collective(node, name):
        return Piece(Who.COLLECTIVE, "collectives")
    attention = node.within(ATTENTION)
    if attention is not None:
        return _of_attention(attention)
    if kind == "copy" or op_of(node) == "aten::copy_":
        return Piece(Who.COPY, "copies")
    return _of_layer(node)


def op_of(node: Node) -> str | None:
    """Return the innermost op in the innermost range, or None."""
    for outer in node.outwards():
        if outer.label is not None:
            return None
        if outer.is_op:
            return outer.name
    return None


def _is_collective(node: Node, name: str) -> bool:
    if name and _COLLECTIVES.search(name):
        return True
    for outer in node.outwards():
        if outer.label is not None:
            return False
        if _COLLECTIVES.search(outer.name):
            return True
    return False


def _of_attention(node: Node) -> Piece:
    assert node.label is not None
    (backend,) = node.label.words
    if node.ran:
        return Piece(Who.AROUND, f"RadixAttention around {node.ran}")
    return Piece(Who.SGLANG, f"RadixAttention ({backend})")


def _of_layer(node: Node) -> Piece:
    for outer in node.outwards():
        if outer.label is None:
            continue
        if outer.label.kind == SHORTCUT:
            return Piece(Who.SGLANG, f"shortcut {outer.label.words[0]}")
        if outer.label.kind == LAYER:
            name = outer.label.words[0]
            return Piece(Who.AROUND, f"{name} around {outer.ran}") if outer.ran else Piece(Who.SGLANG, name)
    return Piece(Who.SGLANG, OUTSIDE)
