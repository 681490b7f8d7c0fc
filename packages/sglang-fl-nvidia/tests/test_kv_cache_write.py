"""The kernel of ``kv_cache_write``: rows of many pieces, and what it refuses."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from sglang_fl.conformance.check import check_call
from sglang_fl.errors import ContractError, UnsupportedError
from sglang_fl.ops import OPS
from sglang_fl.vendor import load_target
from sglang_fl_nvidia.flagos import kv_cache_write as kernels

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
OP = OPS["kv_cache_write"]
kernel: Callable[..., Any] = load_target("sglang_fl_nvidia.flagos.kv_cache_write:kv_cache_write")


@pytest.fixture(autouse=True)
def fresh_launches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "_launches", {})


def call(tokens: int = 7, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Keys of 2 heads of 24 elements, values of 2 heads of 40; two of the tokens are padding."""
    k, v = (torch.randn(tokens, 2, size, device=DEVICE) for size in (24, 40))
    pools = [torch.randn(tokens + 5, 2, size, device=DEVICE).to(dtype) for size in (24, 40)]
    loc = torch.randperm(tokens + 5, device=DEVICE)[:tokens]
    loc[2::3] = -1
    return {"k": k, "v": v, "k_buffer": pools[0], "v_buffer": pools[1], "cache_loc": loc}


def assert_right(arguments: dict[str, Any]) -> None:
    plain = {name: v.cpu().clone() if isinstance(v, Tensor) else v for name, v in arguments.items()}
    assert check_call(OP, kernel, arguments, plain, "kv_cache_write", OP.bound) == []


@pytest.mark.parametrize("piece", [16, 32, 64, 128])
def test_rows_of_several_pieces(piece: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kernels, "PIECE", piece)
    assert_right(call())
    assert_right(call(dtype=torch.float16))


def test_rows_at_any_stride_and_slots_of_either_width():
    arguments = call()
    arguments["k"] = torch.cat([arguments["k"]] * 2, dim=-1)[..., ::2]
    arguments["v"] = torch.cat([arguments["v"]] * 2, dim=1)[:, :2]
    arguments["cache_loc"] = torch.stack([arguments["cache_loc"].int()] * 2, dim=-1)[..., 0]
    assert_right(arguments)


def test_what_it_does_not_take_is_refused_before_anything_is_written():
    gaps = torch.cat([call()["k_buffer"]] * 2, dim=-1)[..., ::2]
    for match, pool in (
        (r"not torch\.float32, torch\.float64", call(dtype=torch.float64)["k_buffer"]),
        ("slots are dense", gaps),
    ):
        before = pool.clone()
        with pytest.raises(UnsupportedError, match=match):
            kernel(**call() | {"k_buffer": pool})
        assert torch.equal(pool, before)
    with pytest.raises(ContractError, match="needs k_scale and v_scale"):
        kernel(**call(dtype=torch.float8_e4m3fn))


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("k", (slice(3),)),
        ("v", (slice(None), slice(1))),
        ("v_buffer", (slice(None), slice(None), slice(8))),
        ("v_buffer", (slice(2),)),
        ("cache_loc", (slice(2),)),
    ],
)
def test_what_does_not_fit_is_refused_after_a_right_call_too(name: str, part: tuple[slice, ...]):
    arguments = call()
    kernel(**arguments)
    arguments[name] = arguments[name][part]
    for computes in (kernel, OP.reference):
        with pytest.raises(ContractError, match="kv_cache_write"):
            computes(**arguments)
