"""The real server on an NVIDIA GPU, CUDA graphs on: FlagGems under layer 2, and vanilla beside it.

Run with an environment that holds SGLang, FlagGems, sglang-fl-core and sglang-fl-nvidia.
"""

import os
from pathlib import Path
from typing import NamedTuple

import pytest

from demo.server import serve

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]

#: The documented launch line, and backends that need no FlashAttention 3 and no grammar library.
LAUNCH = (
    "--disable-piecewise-cuda-graph",
    *("--attention-backend", "triton"),
    *("--sampling-backend", "pytorch"),
    *("--grammar-backend", "none"),
    *("--mem-fraction-static", "0.3"),
)
PROMPTS = [[5 + i, 60 + i, 7, 80 + i, 9, 10][: 2 + i % 5] for i in range(15)] + [list(range(3, 130))]
TOKENS = 8
#: Kernels that round differently may swap two tokens whose log-probabilities are this close (nats).
SURE = 0.3


class Generation(NamedTuple):
    """Greedy tokens of each prompt, and how many of the first ones were no close decision."""

    tokens: list[list[int]]
    sure: list[int]


def generate(model: Path, log: Path, launch: tuple[str, ...], environment: dict[str, str]) -> Generation:
    """Serve the model and send all prompts as one batch."""
    request = {
        "input_ids": PROMPTS,
        "sampling_params": {"temperature": 0, "max_new_tokens": TOKENS, "ignore_eos": True},
        "return_logprob": True,
        "top_logprobs_num": 2,
    }
    with serve(model, log, arguments=launch, environment=environment, timeout=400) as server:
        answer = server.post("/generate", request)
    best_two = [row["meta_info"]["output_top_logprobs"] for row in answer]
    return Generation([row["output_ids"] for row in answer], [sure_prefix(pairs) for pairs in best_two])


def sure_prefix(best_two: list[list[list[float]]]) -> int:
    gaps = [first[0] - second[0] for first, second in best_two]
    return next((i for i, gap in enumerate(gaps) if gap < SURE), len(gaps))


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for logs; TEST_LOGS keeps them."""
    return Path(os.environ.get("TEST_LOGS") or tmp_path_factory.mktemp("logs"))


@pytest.fixture(scope="module")
def vanilla(tiny_model: Path, logs: Path) -> Generation:
    # Without plugins a newer SGLang does not know the former flag; graphs of prefill do no harm here.
    launch = tuple(word for word in LAUNCH if word != "--disable-piecewise-cuda-graph")
    return generate(tiny_model, logs / "vanilla.log", launch, {"SGLANG_PLUGINS": "__none__"})


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("flagos(flagos)", {}),
        ("vendor(vendor.nvidia)", {"SGLANG_FL_PREFER": "vendor", "SGLANG_FL_STRICT": "1"}),
    ],
    ids=["default", "vendor"],
)
def test_server_runs_each_class_on_the_chosen_kind_and_generates_as_vanilla_does(
    kind: str, settings: dict[str, str], tiny_model: Path, logs: Path, vanilla: Generation
):
    name = kind.partition("(")[0]
    dispatch_log = logs / f"{name}.dispatch.log"
    environment = {"SGLANG_FL_DISPATCH_LOG": str(dispatch_log), **settings}
    ours = generate(tiny_model, logs / f"{name}.log", LAUNCH, environment)
    lines = sorted(set(dispatch_log.read_text().splitlines()))
    attention = [line for line in lines if line.startswith("[OOT-DISPATCH] RadixAttention → sglang(")]
    assert attention
    assert [line for line in lines if line not in attention] == [
        f"[OOT-DISPATCH] RMSNorm → {kind}",
        f"[OOT-DISPATCH] RotaryEmbedding → {kind}",
        f"[OOT-DISPATCH] SiluAndMul → {kind}",
    ]
    assert "Capture" in (logs / f"{name}.log").read_text(errors="replace"), "no CUDA graph was captured"
    agreed = [
        ours_row[:sure] == vanilla_row[:sure]
        for ours_row, vanilla_row, sure in zip(ours.tokens, vanilla.tokens, vanilla.sure, strict=True)
    ]
    assert all(agreed), (ours.tokens, vanilla)
    assert sum(vanilla.sure) >= len(PROMPTS), "too few tokens are compared"
