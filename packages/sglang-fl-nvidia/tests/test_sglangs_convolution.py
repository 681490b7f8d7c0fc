"""SGLang's own Triton kernels of the convolution compute what ours do, as its backends call them.

Other releases than those that have them in this place are left out.
"""

from typing import Any

import pytest
import torch

from sglang_fl.ops import OPS
from sglang_fl.vendor import load_target

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
theirs = pytest.importorskip("sglang.kernels.ops.mamba.causal_conv1d_triton")
FN, UPDATE = "causal_conv1d_fn", "causal_conv1d_update"


def arguments_of(op: str, case: str) -> dict[str, Any]:
    (found,) = (each for each in OPS[op].cases if each.name == case)
    return found.arguments(torch.float16, DEVICE)


def assert_alike(op: str, given: dict[str, Any], y: torch.Tensor, states: torch.Tensor) -> None:
    """Run our kernel on what SGLang's was given; ``states`` is the pool that SGLang's has written."""
    ours = load_target(f"sglang_fl_nvidia.flagos.{op}:{op}")(**given)
    found = OPS[op].comparable((ours, given["conv_states"]), given)
    known = OPS[op].comparable((y, states), given)
    # SGLang's rounds each product to 16 bit before it is added.
    torch.testing.assert_close(found, known, rtol=5e-3, atol=5e-3, equal_nan=True)


@pytest.mark.parametrize("has_blocks", [False, True])
@pytest.mark.parametrize(
    "case", ["fewer-tokens-than-taps", "continued", "mixed", "padding", "dense", "two-taps", "no-activation"]
)
def test_prompts(case: str, has_blocks: bool):
    given = arguments_of(FN, case)
    lengths = given["query_start_loc"].diff().tolist()
    states, blocks = given["conv_states"].clone(), None
    if has_blocks:
        if not hasattr(theirs, "CAUSAL_CONV1D_FWD_BLOCK_M"):
            pytest.skip("this SGLang launches a rectangle of blocks")
        size = theirs.CAUSAL_CONV1D_FWD_BLOCK_M
        pairs = [(n, block) for n, length in enumerate(lengths) for block in range(-(-length // size))]
        blocks = {"block_table": torch.tensor(pairs, dtype=torch.int32, device=DEVICE)}
    y = theirs.causal_conv1d_fn(
        *(given["x"], given["weight"], given["bias"]),
        activation=given["activation"],
        conv_states=states,
        has_initial_state=given["has_initial_state"],
        cache_indices=given["cache_indices"],
        query_start_loc=given["query_start_loc"],
        seq_lens_cpu=lengths,
        **blocks or {},
    )
    assert_alike(FN, given, y, states)


@pytest.mark.parametrize("case", ["one-request", "odd-requests", "dense", "padding", "two-taps", "no-bias"])
def test_update(case: str):
    given = arguments_of(UPDATE, case)
    states = given["conv_states"].clone()
    y = theirs.causal_conv1d_update(
        *(given["x"], states, given["weight"], given["bias"], given["activation"]),
        conv_state_indices=given["conv_state_indices"],
    )
    assert_alike(UPDATE, given, y, states)
