"""How far our Triton kernels and SGLang's own are from float64, on the same inputs, in one run.

    python -m benchmarks.bench_exactness [--op NAME] [--seeds 5] [--csv F]

Inputs are the sample inputs of each op's contract, but for those with a wider bound of their own, and those
of the models in ``benchmarks/workloads.py``, drawn anew for each seed; the memory that results are allocated
from holds NaN before each call. The error is that of the worst element, in units of the dtype's rounding
(``sglang_fl.conformance.error_in_units``): half a unit is a result that was rounded once. Columns: ours,
SGLang's own CUDA path (``vendor.nvidia``), FlagGems', the reference on the same GPU. A side that refuses a
call has no figure. Ends with code 1 where ours is further from float64 than SGLang's own by more than one
unit.
"""

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.about import about
from benchmarks.tables import write_table
from benchmarks.workloads import MODELS, Model
from sglang_fl.conformance import error_in_units
from sglang_fl.dispatch.loading import load_kernel
from sglang_fl.errors import UnsupportedError
from sglang_fl.ops import OPS, Case, Op, lacking
from sglang_fl_nvidia import NVIDIA

SIDES = ("flagos", "vendor.nvidia", "flagos.flag_gems", "reference")
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
HEAD = ["op", "input", "dtype", "seeds", *SIDES]
DEVICE = "cuda"
#: Of a model's batch.
TOKENS = 257
#: Tensors of NaN that are freed before each call, elements and number: PyTorch takes results under 1 MB from
#: other memory than larger ones.
POISONS = ((1 << 26, 1), (1 << 16, 64))

Arguments = dict[str, object]


@dataclass(frozen=True)
class Input:
    """One kind of input of an op.

    Parameters
    ----------
    op : its name
    name : in the table
    draw : makes the arguments with a dtype and a seed, on the GPU
    """

    op: str
    name: str
    draw: Callable[[torch.dtype, int], Arguments]


def inputs() -> Iterator[Input]:
    for op in OPS.values():
        if not {"flagos", "vendor.nvidia"} <= {impl.id for impl in NVIDIA.impls if impl.op == op.name}:
            continue
        for case in op.cases:
            if case.bound is not None:  # rounded in between by contract: the unit would not be the result's
                continue
            yield Input(op.name, case.name, partial(sample, case))
        yield from of_models(op)


def of_models(op: Op) -> Iterator[Input]:
    """Yield the op's inputs at the widths of real models."""
    if op.name.endswith("_and_mul"):
        for model in MODELS:
            yield Input(op.name, model.name, partial(gated, 2 * model.intermediate))
    elif op.name in ("rms_norm", "gemma_rms_norm"):
        for model in MODELS:
            yield Input(op.name, model.name, partial(norm, model.hidden))
            yield Input(op.name, f"{model.name}, residual", partial(norm, model.hidden, more=("residual",)))
    elif op.name == "rotary_embedding":
        for model in MODELS:
            yield Input(op.name, model.name, partial(rotation, model))


def sample(case: Case, dtype: torch.dtype, seed: int) -> Arguments:
    return case.arguments(dtype, DEVICE, seed)


def gated(width: int, dtype: torch.dtype, seed: int) -> Arguments:
    return {"x": normal(dtype, seed)(TOKENS, width)}


def norm(width: int, dtype: torch.dtype, seed: int, more: tuple[str, ...] = ()) -> Arguments:
    random = normal(dtype, seed)
    given = {"x": 3 * random(TOKENS, width), "weight": 1 + 0.1 * random(width), "eps": 1e-6}
    return given | {name: random(TOKENS, width) for name in more}


def rotation(model: Model, dtype: torch.dtype, seed: int) -> Arguments:
    random, size = normal(dtype, seed), model.head_size
    frequencies = 10000 ** (-torch.arange(0, size, 2, device=DEVICE).double() / size)
    angles = torch.arange(8192, device=DEVICE)[:, None] * frequencies
    return {
        "positions": torch.arange(TOKENS, device=DEVICE) * 31,
        "query": random(TOKENS, model.heads * size),
        "key": random(TOKENS, model.key_heads * size),
        "cos_sin_cache": torch.cat([angles.cos(), angles.sin()], dim=-1).float(),
        "head_size": size,
        "is_neox_style": model.is_neox_style,
    }


def normal(dtype: torch.dtype, seed: int) -> Callable[..., Tensor]:
    generator = torch.Generator(DEVICE).manual_seed(seed)
    return lambda *shape: torch.randn(*shape, generator=generator, device=DEVICE).to(dtype)


def sides_of(op: Op) -> Mapping[str, Callable]:
    impls = {impl.id: impl for impl in NVIDIA.impls if impl.op == op.name and impl.id in SIDES}
    kernels = {name: load_kernel(op, impl, strict=True) for name, impl in impls.items()}
    return kernels | {"reference": op.reference}


def errors(given: Input, dtype: torch.dtype, seed: int) -> dict[str, float | None]:
    """Return by side the error of the worst result that is a floating-point one; None where it refuses."""
    op = OPS[given.op]
    exact = {name: as_float64(value) for name, value in given.draw(dtype, seed).items()}
    truth = op.results(op.reference(**exact), exact)
    sizes = op.magnitude(truth, **exact) if op.magnitude else truth
    sizes = (sizes,) if isinstance(sizes, Tensor) else sizes
    found: dict[str, float | None] = {}
    for name, side in sides_of(op).items():
        results = results_of(op, side, given.draw(dtype, seed))
        found[name] = results and max(
            error_in_units(result, true, size)
            for result, true, size in zip(results, truth, sizes, strict=True)
            if result.is_floating_point()
        )
    return found


def results_of(op: Op, side: Callable, arguments: Arguments) -> tuple[Tensor, ...] | None:
    """Call a side, which may write to its arguments, on poisoned memory; return None where it refuses."""
    if lacking(side, [name for name in op.options if name in arguments]):
        return None
    poison = [torch.full((size,), torch.nan, device=DEVICE) for size, count in POISONS for _ in range(count)]
    del poison
    try:
        return op.results(side(**arguments), arguments)
    except UnsupportedError:
        return None


def as_float64(value: object) -> object:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value.to(torch.float64)
    return value


def row_of(given: Input, dtype: torch.dtype, seeds: int) -> list:
    draws = [errors(given, dtype, seed) for seed in range(1, 1 + seeds)]
    texts = []
    for name in SIDES:
        figures = [draw.get(name) for draw in draws]
        texts.append("" if None in figures else f"{max(figures):.3f}")
    return [given.op, given.name, str(dtype).removeprefix("torch."), seeds, *texts]


def further(row: list) -> float:
    """Return by how many units ours is further from float64 than SGLang's own."""
    ours, theirs = row[4:6]
    return float(ours) - float(theirs) if ours and theirs else 0.0


def summary(rows: list[list]) -> Iterator[str]:
    """Say for each op how far each side is at most."""
    for op in dict.fromkeys(row[0] for row in rows):
        figures = [row[4:] for row in rows if row[0] == op]
        worst = [max(float(figure or 0) for figure in side) for side in zip(*figures, strict=True)]
        told = ", ".join(f"{name} {figure:.3f}" for name, figure in zip(SIDES, worst, strict=True))
        yield f"{op}: {len(figures)} inputs; at most {told}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--op", help="this op alone")
    parser.add_argument("--seeds", type=int, default=5, help="draws of each input")
    parser.add_argument("--csv", type=Path, help="write the table there too")
    options = parser.parse_args()
    about_it = about()
    print(about_it, flush=True)
    rows = []
    with torch.inference_mode():
        for given in inputs():
            if options.op in (None, given.op):
                for dtype in DTYPES:
                    rows.append(row_of(given, dtype, options.seeds))
                    print(*rows[-1], sep="  ", flush=True)
                if options.csv:  # anew after each input: it is long
                    write_table(options.csv, about_it, HEAD, rows)
    print(*summary(rows), sep="\n")
    worse = [row for row in rows if further(row) > 1]
    if worse:
        raise SystemExit(
            "\n".join(["further from float64 than SGLang's own by more than one unit:", *map(str, worse)])
        )


if __name__ == "__main__":
    main()
