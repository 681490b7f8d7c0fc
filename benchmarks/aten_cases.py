"""Calls of ATen ops, as data: those of a served model, and those at which kernels have been seen to fail."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

__all__ = ["SERVED", "Call", "edges_of"]

#: ``(args, kwargs)`` of one call.
Call = tuple[tuple[Any, ...], dict[str, Any]]
#: Makes the calls of one op.
Calls = Callable[[], Iterator[Call]]

BF16, F32, I32, I64 = torch.bfloat16, torch.float32, torch.int32, torch.int64
#: Tokens of a decode step with one and with 64 requests, and of a prefill.
TOKENS = (1, 64, 8192)
HIDDEN, VOCABULARY = 4096, 151936
BEYOND_FLOAT32 = (1 << 24) + 1


def normal(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
    return torch.randn(*shape, device="cuda").to(dtype)


def integers(*shape: int, below: int = 1000, dtype: torch.dtype = I64) -> Tensor:
    return torch.randint(0, below, shape, device="cuda", dtype=dtype)


def bools(*shape: int) -> Tensor:
    return torch.rand(*shape, device="cuda") < 0.5


def filled(tensors: list[Tensor], arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return the first tensor and the arguments, in which each ``...`` is the next one."""
    first, *others = tensors
    rest = iter(others)
    return first, *(next(rest) if argument is ... else argument for argument in arguments)


def with_tensors(*arguments: Any, positive: bool = False, **keywords: Any) -> Calls:
    """Calls on activations; ``...`` stands for a further tensor of the same shape."""

    def calls() -> Iterator[Call]:
        for tokens in TOKENS:
            tensors = [normal(tokens, HIDDEN) for _ in range(1 + arguments.count(...))]
            if positive:
                tensors = [tensor.abs() + 0.1 for tensor in tensors]
            yield filled(tensors, arguments), keywords

    return calls


def with_requests(*arguments: Any, below: int = 1000, dtype: torch.dtype = I64, **keywords: Any) -> Calls:
    """Calls on one integer a request, as the scheduler's bookkeeping makes; ``...`` as above."""

    def calls() -> Iterator[Call]:
        for requests in (1, 64):
            tensors = [integers(requests, below=below, dtype=dtype) for _ in range(1 + arguments.count(...))]
            yield filled(tensors, arguments), keywords

    return calls


def with_logits(*arguments: Any, dtype: torch.dtype = F32, **keywords: Any) -> Calls:
    def calls() -> Iterator[Call]:
        for requests in (1, 64):
            yield (normal(requests, VOCABULARY, dtype=dtype), *arguments), keywords

    return calls


def creating(*arguments: Any, dtype: torch.dtype = I64) -> Calls:
    """Calls that make a tensor of one element a request."""

    def calls() -> Iterator[Call]:
        for requests in (1, 64):
            shaped = tuple(requests if argument is ... else argument for argument in arguments)
            yield shaped, {"dtype": dtype, "device": torch.device("cuda")}

    return calls


def shaped(value: tuple[Any, ...] = ()) -> Calls:
    """Calls that make a tensor of a shape."""

    def calls() -> Iterator[Call]:
        for requests in (1, 64):
            yield ([requests], *value), {"dtype": I64, "device": torch.device("cuda")}

    return calls


def matrices(op: str) -> Calls:
    def calls() -> Iterator[Call]:
        for tokens in TOKENS:
            for inner, outer in ((896, 1152), (HIDDEN, 6144)):
                left, right = normal(tokens, inner), normal(outer, inner).t()
                bias = normal(outer)
                yield ((bias, left, right), {}) if op == "addmm" else ((left, right), {})

    return calls


def batched_matrices() -> Iterator[Call]:
    for tokens in (1, 64, 1024):
        yield (normal(128, tokens, 128), normal(128, 128, 512)), {}


def embeddings() -> Iterator[Call]:
    for tokens in TOKENS:
        yield (normal(VOCABULARY, 896), integers(tokens, below=VOCABULARY)), {}


def picks(op: str) -> Calls:
    """Rows of a table by their numbers."""

    def calls() -> Iterator[Call]:
        for requests in (1, 64):
            table, rows = normal(8192, 896), integers(requests, below=8192)
            yield ((table, 0, rows) if op == "index_select" else (table, [rows])), {}

    return calls


def gathers() -> Iterator[Call]:
    for requests in (1, 64):
        yield (normal(requests, VOCABULARY, dtype=F32), 1, integers(requests, 1, below=VOCABULARY)), {}


def puts(*extra: Any) -> Calls:
    def calls() -> Iterator[Call]:
        for requests in (1, 64):
            rows = torch.randperm(8192, device="cuda")[:requests]
            yield (normal(8192, 128), [rows], normal(requests, 128), *extra), {}

    return calls


def scatters() -> Iterator[Call]:
    for requests in (1, 64):
        yield (normal(requests, 1000), 1, integers(requests, 1), normal(requests, 1)), {}


def joined() -> Iterator[Call]:
    for requests in (1, 64):
        yield ([integers(requests), integers(requests)],), {}
    yield ([normal(8192, 512), normal(8192, 64)], -1), {}


def chosen() -> Iterator[Call]:
    for requests in (1, 64):
        yield (bools(requests), integers(requests), integers(requests)), {}


def masked(dtype: torch.dtype = I64) -> Calls:
    def calls() -> Iterator[Call]:
        for requests in (1, 64):
            yield (integers(requests, dtype=dtype), bools(requests), 0), {}

    return calls


def copies() -> Iterator[Call]:
    for requests in (1, 64):
        yield (integers(requests), integers(requests)), {}
    yield (normal(8192, HIDDEN), normal(8192, HIDDEN)), {}


def conversions() -> Iterator[Call]:
    for tokens in TOKENS:
        yield (normal(tokens, HIDDEN),), {"dtype": F32}


def repeats() -> Iterator[Call]:
    for requests in (1, 64):
        yield (integers(requests), integers(requests, below=8)), {}


#: What a served dense, sparse or latent model calls, by ATen's name.
SERVED: dict[str, Calls] = {
    "_log_softmax": with_logits(-1, False),
    "_softmax": with_logits(-1, False),
    "_to_copy": conversions,
    "abs": with_tensors(),
    "add.Tensor": with_tensors(...),
    "add_.Tensor": with_requests(1),
    "addmm": matrices("addmm"),
    "all": with_requests(dtype=I64),
    "amax": with_logits([-1]),
    "any": with_requests(dtype=I64),
    "arange": creating(...),
    "arange.start": creating(0, ...),
    "argmax": with_logits(-1),
    "bitwise_and.Tensor": with_requests(...),
    "bitwise_not": with_requests(),
    "bitwise_or.Tensor": with_requests(...),
    "bmm": batched_matrices,
    "cat": joined,
    "clamp": with_requests(0),
    "copy_": copies,
    "cos": with_tensors(),
    "cumsum": with_requests(0, below=4096, dtype=I32),
    "div.Tensor": with_tensors(..., positive=True),
    "div_.Tensor": with_logits(0.7),
    "embedding": embeddings,
    "eq.Scalar": with_requests(1, below=4),
    "eq.Tensor": with_requests(..., below=4),
    "exp": with_tensors(),
    "fill_.Scalar": with_requests(0),
    "full": shaped((1,)),
    "gather": gathers,
    "ge.Scalar": with_requests(1, below=4),
    "ge.Tensor": with_requests(..., below=4),
    "gelu": with_tensors(),
    "gt.Scalar": with_requests(1, below=4),
    "gt.Tensor": with_requests(..., below=4),
    "index.Tensor": picks("index"),
    "index_put_": puts(),
    "_index_put_impl_": puts(False, False),
    "index_select": picks("index_select"),
    "isneginf": with_tensors(),
    "le.Scalar": with_requests(1, below=4),
    "le.Tensor": with_requests(..., below=4),
    "log": with_tensors(positive=True),
    "logical_and": with_requests(...),
    "logical_not": with_requests(),
    "lt.Scalar": with_requests(1, below=4),
    "lt.Tensor": with_requests(..., below=4),
    "masked_fill.Scalar": masked(),
    "masked_fill_.Scalar": masked(),
    "max": with_requests(),
    "maximum": with_requests(..., below=4),
    "mean.dim": with_tensors([-1], True),
    "minimum": with_requests(..., below=4),
    "mm": matrices("mm"),
    "mul.Tensor": with_tensors(...),
    "mul_.Tensor": with_tensors(...),
    "ne.Scalar": with_requests(1, below=4),
    "ne.Tensor": with_requests(..., below=4),
    "neg": with_tensors(),
    "ones": shaped(),
    "pow.Scalar": lambda: iter([((10000.0, normal(64, dtype=F32)), {})]),
    "pow.Tensor_Scalar": with_tensors(2),
    "reciprocal": with_tensors(positive=True),
    "relu": with_tensors(),
    "repeat_interleave.self_Tensor": repeats,
    "rsqrt": with_tensors(positive=True),
    "scatter_.src": scatters,
    "sigmoid": with_tensors(),
    "silu": with_tensors(),
    "sin": with_tensors(),
    "sort": with_logits(-1, True),
    "sub.Tensor": with_requests(...),
    "sub_.Tensor": with_requests(1),
    "sum": with_requests(below=4096),
    "sum.dim_IntList": with_tensors([-1]),
    "tanh": with_tensors(),
    "topk": with_logits(8),
    "tril": lambda: iter([((normal(1024, 1024),), {})]),
    "where.self": chosen,
    "zero_": with_requests(),
    "zeros": shaped(),
    "zeros_like": with_tensors(),
}


#: Their integers are places, which must exist.
PLACES = ("embedding", "gather", "index", "scatter", "repeat_interleave", "sort", "topk")


def edges_of(overload: str, call: Call) -> Iterator[tuple[str, Call]]:
    """Return variants of a call on other memory: strided, empty, of numbers that are none, beyond float32."""
    if any(name in overload for name in PLACES):
        return
    args, keywords = call

    def varied(change: Callable[[Tensor], Tensor]) -> Call:
        def of(value: Any) -> Any:
            if isinstance(value, Tensor):
                return change(value)
            return [of(item) for item in value] if isinstance(value, list) else value

        return tuple(of(value) for value in args), keywords

    tensors = [value for value in args if isinstance(value, Tensor)]
    if not tensors:
        return
    if all(tensor.dim() == 1 or tensor.shape == tensors[0].shape for tensor in tensors):
        yield "every second element", varied(strided)
    if tensors[0].is_floating_point():
        yield "NaN and infinities", varied(extreme)
    else:
        yield "integers beyond 2^24", varied(lambda x: x if x.dtype == torch.bool else x + BEYOND_FLOAT32)
    if len({tensor.shape for tensor in tensors}) == 1:
        yield "no elements", varied(lambda x: x[:0])


def strided(tensor: Tensor) -> Tensor:
    """Return equal values at every second place of a larger tensor."""
    wide = torch.stack([tensor, torch.zeros_like(tensor)], dim=-1).flatten(-2)
    return wide[..., ::2]


def extreme(tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    changed = tensor.clone(memory_format=torch.contiguous_format)
    changed.view(-1)[:3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    return changed if tensor.numel() >= 3 else tensor
