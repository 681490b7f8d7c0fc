"""What the root-mean-square norms share: the sum with the residual, checks, sample inputs."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sglang_fl.errors import ContractError
from sglang_fl.ops.op import Arguments, Bound, Case, Outputs

__all__ = ["check_row_weight", "norm_cases", "residual_sum", "sum_magnitude"]

#: Two of three summands may be added and rounded first, in units of the summands' size.
THREE_TERMS = Bound(half=1.1, single=8)


def check_row_weight(op: str, x: Tensor, weight: Tensor | None, name: str = "weight") -> None:
    """Raise ``ContractError`` unless the weight is one row of ``x``."""
    if x.dim() == 0 or (weight is not None and weight.shape != x.shape[-1:]):
        shape = None if weight is None else tuple(weight.shape)
        raise ContractError(f"{op}: {name} {shape} does not fit the last axis of x {tuple(x.shape)}")


def residual_sum(
    op: str,
    x: Tensor,
    residual: Tensor | None,
    post_residual_addition: Tensor | None,
    dtype: torch.dtype,
    fp32_residual: bool = False,
) -> Tensor:
    """Return ``x`` plus what is to be added to it, in ``dtype``.

    Raises
    ------
    ContractError : a summand has not the shape and dtype of ``x``, or the second comes without the first
    """
    if post_residual_addition is not None and residual is None:
        raise ContractError(f"{op}: post_residual_addition needs a residual")
    h = x.to(dtype)
    summands = {"residual": residual, "post_residual_addition": post_residual_addition}
    for name, summand in summands.items():
        if summand is None:
            continue
        dtypes = {x.dtype, *([torch.float32] if fp32_residual else [])}
        if summand.shape != x.shape or summand.dtype not in dtypes:
            raise ContractError(
                f"{op}: {name} {tuple(summand.shape)} {summand.dtype} is not like "
                f"x {tuple(x.shape)} {x.dtype}"
            )
        h = h + summand.to(dtype)
    return h


def sum_magnitude(
    truth: Outputs,
    x: Tensor,
    weight: Tensor,
    eps: float,
    residual: Tensor | None = None,
    *,
    post_residual_addition: Tensor | None = None,
    **options: Any,
) -> Outputs:
    """Return the size of the terms of each element: of three summands two may cancel."""
    if residual is None or post_residual_addition is None:
        return truth
    size = x.abs() + residual.abs() + post_residual_addition.abs()
    normed, total = truth
    # A total of zero is normed to zero; then any number is as good.
    return normed.abs() * (size / total.abs().clamp_min(torch.finfo(total.dtype).tiny)), size


def norm_cases(
    prefix: str = "",
    *,
    options: Mapping[str, Any] | None = None,
    bound: Bound | None = None,
    bound_float32_weight: Bound | None = None,
    width: int | None = None,
    centre: float = 1.0,
    residual_only: bool = False,
) -> list[Case]:
    """Return sample inputs with and without a residual.

    Parameters
    ----------
    prefix : of the cases' names
    options : options of the contract that all of them have; with any, a few shapes are enough
    bound, bound_float32_weight : see ``Case``
    width : of a row, where the options ask for one
    centre : around which the weight lies
    residual_only : leave out those without a residual
    """

    def case(name: str, *shape: int, residual: bool, bound: Bound | None = bound, **special: Any) -> Case:
        make = _maker(shape, residual, centre, dict(options or {}), **special)
        parts = (prefix, name, "residual" if residual else "")
        return Case("-".join(filter(None, parts)), make, bound)

    cases = [] if residual_only else [case("one-axis", width or 64, residual=False)]
    for residual in (True,) if residual_only else (False, True):
        cases += [
            case("empty", 0, width or 256, residual=residual),
            case("one-token", 1, width or 896, residual=residual),
            case("three-axes", 2, 3, width or 128, residual=residual),
            case("row-strided", 5, width or 256, residual=residual, padding=64),
            case(
                "float32-weight",
                *(5, width or 256),
                residual=residual,
                weight_dtype=torch.float32,
                bound=bound_float32_weight or bound,
            ),
        ]
        if not options:
            cases += [
                case("odd-width", 7, 37, residual=residual),
                case("many-tokens", 129, 4096, residual=residual),
                case("tiny-values", 5, 512, residual=residual, scale=1e-4),
                case("large-eps", 5, 512, residual=residual, eps=1e-2),
            ]
    if not options or residual_only:
        cases += [case("post-addition", 9, 256, residual=True, post=True, bound=THREE_TERMS)]
    return cases


def _maker(
    shape: tuple[int, ...],
    residual: bool,
    centre: float,
    options: dict[str, Any],
    *,
    post: bool = False,
    weight_dtype: torch.dtype | None = None,
    padding: int = 0,
    scale: float = 1.0,
    eps: float = 1e-6,
) -> Any:
    def make(dtype: torch.dtype, generator: torch.Generator) -> Arguments:
        *rows, width = shape

        def activation() -> Tensor:
            rand = torch.randn(*rows, width + padding, generator=generator) * scale
            return rand.to(dtype)[..., :width]

        weight = centre + 0.1 * torch.randn(width, generator=generator)
        arguments: Arguments = {
            "x": activation(),
            "weight": weight.to(weight_dtype or dtype),
            "eps": eps,
        }
        if residual:
            arguments["residual"] = activation()
        if post:
            arguments["post_residual_addition"] = activation()
        return arguments | options

    return make
