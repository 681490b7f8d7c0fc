"""The names of ranges in a trace: what a process that runs the model says about a stretch of its time."""

from dataclasses import dataclass

__all__ = ["ATEN", "ATTENTION", "DECODE", "LAYER", "OURS", "PREFILL", "SHORTCUT", "STEP", "Label"]

#: One batch: phase, requests, tokens.
STEP = "step"
#: A kernel of layer 2: op, backend kind, the class of the layer that it computes as a whole, or nothing.
OURS = "ours"
#: A kernel of layer 1: the ATen op, backend kind.
ATEN = "aten"
#: A call of SGLang's attention layer: the backend.
ATTENTION = "attention"
#: A function of SGLang past a layer: its name.
SHORTCUT = "shortcut"
#: A call of a layer: its class.
LAYER = "layer"

#: Phases; other modes of SGLang's are called as SGLang calls them.
DECODE, PREFILL = "decode", "prefill"

_MARK = "sglang_fl"
_BETWEEN = "|"


@dataclass(frozen=True)
class Label:
    """What a range is.

    Parameters
    ----------
    kind : one of the constants above
    words : see there
    """

    kind: str
    words: tuple[str, ...]

    def __str__(self) -> str:
        return _BETWEEN.join((_MARK, self.kind, *self.words))

    @classmethod
    def read(cls, name: str) -> "Label | None":
        """Return what the name of an event says; None where it is not one of ours."""
        mark, *words = name.split(_BETWEEN)
        return cls(words[0], tuple(words[1:])) if mark == _MARK and words else None
