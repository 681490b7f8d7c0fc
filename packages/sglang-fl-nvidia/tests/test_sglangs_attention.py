"""SGLang's own Triton kernels of attention compute what ours do, with the arguments that its backend passes.

Other releases than those that have them in this place are left out.
"""

from typing import Any

import pytest
import torch

from sglang_fl.ops import OPS
from sglang_fl.vendor import load_target

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
decode_kernels = pytest.importorskip("sglang.kernels.ops.attention.decode_attention")
extend_kernels = pytest.importorskip("sglang.kernels.ops.attention.extend_attention")
SPLITS = 4


def arguments_of(op: str, case: str) -> dict[str, Any]:
    (found,) = (each for each in OPS[op].cases if each.name == case)
    return found.arguments(torch.float16, DEVICE)


def scales_of(given: dict[str, Any]) -> tuple[float, float]:
    """Return those of the pool. In 8 bit SGLang rounds queries and weights too: it is compared in 16 bit."""
    return given.get("k_scale", 1.0), given.get("v_scale", 1.0)


def assert_alike(op: str, given: dict[str, Any], theirs: torch.Tensor) -> None:
    ours = load_target(f"sglang_fl_nvidia.flagos.{op}:{op}")(**given)
    torch.testing.assert_close(ours, theirs, rtol=2e-3, atol=2e-3)


@pytest.mark.parametrize(
    "case",
    [
        *(
            "mixed-lengths",
            "one-head-of-keys",
            "equal-heads",
            "latent",
            "soft-cap",
            "bounds-from-5",
            "scales",
        ),
        "temperature-behind-the-cap",
    ],
)
def test_decode(case: str):
    given = arguments_of("decode_attention", case)
    q, k, v = (given[name] for name in ("q", "k_buffer", "v_buffer"))
    o = torch.empty(*q.shape[:2], v.shape[2], dtype=q.dtype, device=DEVICE)
    decode_kernels.decode_attention_fwd(
        *(q, k, v, o, given["kv_indptr"], given["kv_indices"]),
        torch.empty(*q.shape[:2], SPLITS, v.shape[2], device=DEVICE),
        torch.empty(*q.shape[:2], SPLITS, device=DEVICE),
        torch.full((len(q),), SPLITS, dtype=torch.int32, device=DEVICE),
        *(SPLITS, given["scale"], *scales_of(given)),
        logit_cap=given.get("logit_cap", 0.0),
        xai_temperature_len=given.get("temperature_len", -1),
        has_mla=case == "latent",
    )
    assert_alike("decode_attention", given, o)


@pytest.mark.parametrize(
    "case",
    [
        *("prefixes", "no-prefix", "latent", "window", "soft-cap", "sinks", "scales"),
        *("temperature", "temperature-behind-the-cap", "temperature-in-a-window"),
    ],
)
def test_extend(case: str):
    given = arguments_of("extend_attention", case)
    q, k, v = (given[name] for name in ("q", "k", "v"))
    o = torch.empty(*q.shape[:2], v.shape[2], dtype=q.dtype, device=DEVICE)
    extend_kernels.extend_attention_fwd(
        *(q, k, v.contiguous(), o, given["k_buffer"], given["v_buffer"]),
        *(given["qo_indptr"], given["kv_indptr"], given["kv_indices"]),
        *(None, True, None, int(given["qo_indptr"].diff().max())),
        *(*scales_of(given), given["scale"]),
        logit_cap=given.get("logit_cap", 0.0),
        xai_temperature_len=given.get("temperature_len", -1),
        sliding_window_size=given.get("sliding_window", -1),
        sinks=given.get("sinks"),
    )
    assert_alike("extend_attention", given, o)
