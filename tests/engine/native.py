"""SGLang's own PyTorch path of an op, called with the arguments of the contract."""

import torch
from torch import Tensor

from tests.ops.subject import Arguments, subject_of

__all__ = ["native"]


def native(op: str, arguments: Arguments) -> tuple[Tensor, ...] | None:
    """Return what SGLang's path returns, or None where it cannot do what these arguments ask for."""
    path = subject_of(op).native
    assert callable(path), f"{op}: {path}"
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        result = path(arguments)
    return (result,) if isinstance(result, Tensor) else result
