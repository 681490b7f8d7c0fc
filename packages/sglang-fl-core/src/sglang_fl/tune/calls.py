"""The calls that the model has made of each op, as ``SGLANG_FL_KEEP_CALLS`` has kept them."""

import math
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sglang_fl.dispatch.kept_calls import kept_files
from sglang_fl.errors import SglangFlError

__all__ = ["MOST_CALLS", "RecordedCall", "recorded_calls", "spread"]

#: Calls of one op that are measured: models make few shapes of each, but for those whose lists grow.
MOST_CALLS = 12


@dataclass(frozen=True)
class RecordedCall:
    """One call in a file.

    Parameters
    ----------
    op : its op
    layer : the class of the layer that made it
    path : of the file
    shapes : of its tensors, for people
    size : elements of its tensors
    """

    op: str
    layer: str
    path: Path
    shapes: str
    size: int


def recorded_calls(folder: Path) -> dict[str, list[RecordedCall]]:
    """Return the calls of each op, the smallest first.

    Of several ranks, which call alike, the one that has kept most counts.

    Raises
    ------
    SglangFlError : a file cannot be read
    """
    ranks: dict[Path, list[Path]] = {}
    for path in kept_files(folder):
        ranks.setdefault(path.parent, []).append(path)
    calls: dict[str, list[RecordedCall]] = {}
    for path in max(ranks.values(), key=len, default=[]):
        call = _read(path)
        calls.setdefault(call.op, []).append(call)
    return {op: sorted(found, key=lambda call: call.size) for op, found in sorted(calls.items())}


def spread(calls: Sequence[RecordedCall], most: int = MOST_CALLS) -> list[RecordedCall]:
    """Return so many calls at most, evenly from the smallest to the largest."""
    if len(calls) <= most:
        return list(calls)
    step = (len(calls) - 1) / (most - 1)
    return [calls[round(place * step)] for place in range(most)]


def _read(path: Path) -> RecordedCall:
    try:
        found = torch.load(path, weights_only=True, mmap=True)
        tensors = dict(_sizes(found["arguments"]))
        size = sum(math.prod(size) for size in tensors.values())
        return RecordedCall(found["op"], found["layer"], path, _shown(tensors), size)
    except (OSError, EOFError, KeyError, TypeError, RuntimeError, pickle.UnpicklingError) as error:
        raise SglangFlError(f"{path}: no kept call: {type(error).__name__}: {error}") from None


def _sizes(arguments: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name the tensors of a call, those in lists by their numbers."""
    for name, value in arguments.items():
        if isinstance(value, dict) and "size" in value:
            yield name, tuple(value["size"])
        elif isinstance(value, list | tuple):
            yield from _sizes({f"{name}[{number}]": part for number, part in enumerate(value)})


def _shown(tensors: dict[str, tuple[int, ...]]) -> str:
    return ", ".join(f"{name} {'x'.join(map(str, size)) or 'a number'}" for name, size in tensors.items())
