"""SGLang's real engine on the simulated MLU, judged by transformers on the same weights in float32."""

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.engine.conftest import finish
from tests.engine.models import FAMILIES, Family, make_model
from tests.engine.test_models import GENERATE, Difference, as_request, assert_agrees, compare, draw_prompts

pytestmark = pytest.mark.timeout(300)

NEEDS = Path(__file__).parents[2] / "docs/chip-needs.md"
VENDOR, REFERENCE = "vendor(vendor.mlu)", "reference(reference)"


@dataclass(frozen=True)
class Setup:
    """A model family and how it is run.

    Parameters
    ----------
    family : its name
    runs : what the dispatch log must say of each layer class
    settings : beside the chip
    ranks : one process each, with collectives between them
    """

    family: str
    runs: Mapping[str, str]
    settings: Mapping[str, str]
    ranks: int = 1

    def __str__(self) -> str:
        off = "-off" if not self.runs else ""
        return f"{self.family}{off}" + (f"-tp{self.ranks}" if self.ranks > 1 else "")


DENSE = dict.fromkeys(("RMSNorm", "RotaryEmbedding", "SiluAndMul"), VENDOR)
EXPERTS = dict.fromkeys(("RMSNorm", "RotaryEmbedding", "TopK", "UnquantizedFusedMoEMethod"), VENDOR)
#: Its norms have no kernel here, and its GELU is the approximated one, for which the kernel is not called.
GEMMA = dict.fromkeys(("Gemma3RMSNorm", "GeluAndMul"), REFERENCE)

SETUPS = [
    Setup("Qwen2", DENSE, {"SGLANG_FL_STRICT": "1"}),
    Setup("Qwen2", {}, {"SGLANG_FL_OOT_ENABLED": "0"}),
    Setup("Qwen3-MoE", EXPERTS, {"SGLANG_FL_STRICT": "1"}),
    Setup("Gemma-3", GEMMA, {}),
    Setup("Qwen3-MoE", EXPERTS, {"SGLANG_FL_STRICT": "1"}, ranks=2),
]


@dataclass(frozen=True)
class Judged:
    """What one engine did.

    Parameters
    ----------
    setup : what ran
    output : its log
    dispatched : the lines of the dispatch log
    asked : what it asked of the chip
    differences : from transformers, of prompts and of followers with a cached prefix
    """

    setup: Setup
    output: str
    dispatched: set[str]
    asked: set[str]
    differences: dict[str, Difference]


@pytest.fixture(scope="module", params=SETUPS, ids=str)
def judged(request, tmp_path_factory, simulating) -> Judged:
    """Run one engine and compare all that it says."""
    setup, folder = request.param, tmp_path_factory.mktemp("mlu")
    (family,) = (family for family in FAMILIES if family.name == setup.family)
    model = make_model(family, folder / "model")
    prompts, followers = draw_prompts(family, folder / "model")
    questions = {
        "engine": engine_arguments(family, folder / "model", setup.ranks),
        "prompts": as_request(prompts),
        "followers": as_request(followers),
        "mistakes": [],
        "planted": "",
    }
    (folder / "questions.json").write_text(json.dumps(questions))
    logs = {name: folder / f"{name}.log" for name in ("dispatch", "record")}
    settings = {
        "SGLANG_FL_DISPATCH_LOG": str(logs["dispatch"]),
        "SGLANG_FL_SIMULATED_RECORD": str(logs["record"]),
    }
    command = [sys.executable, str(GENERATE), str(folder / "questions.json")]
    run = finish(command, simulating("mlu", settings | setup.settings), timeout=280)
    assert run.code == 0, run.output[-5000:]
    lines = {name: log.read_text().splitlines() if log.exists() else [] for name, log in logs.items()}
    return Judged(
        setup,
        run.output,
        set(lines["dispatch"]),
        set(lines["record"]),
        {
            "prompts": compare(model, prompts, run.result["prompts"]),
            "followers": compare(model, followers, run.result["followers"]),
        },
    )


def engine_arguments(family: Family, model: Path, ranks: int) -> dict[str, Any]:
    return {
        "model_path": str(model),
        "skip_tokenizer_init": True,
        "max_total_tokens": 2048,
        "dtype": "float32",
        "log_level": "info",
        "random_seed": 1,
        "tp_size": ranks,
        **family.engine,
    }


@pytest.mark.parametrize("asked", ["prompts", "followers"])
def test_tokens_and_probabilities_are_those_of_transformers(judged: Judged, asked: str):
    assert_agrees(judged.differences[asked])


def test_exactly_the_expected_kernels_ran(judged: Judged):
    expected = {f"[OOT-DISPATCH] {name} → {ran}" for name, ran in judged.setup.runs.items()}
    assert judged.dispatched == expected


def test_it_ran_on_the_chip(judged: Judged):
    assert "aten::mm.out" in judged.asked
    assert {"torch.mlu.current_stream", "torch.mlu.mem_get_info"} < judged.asked
    assert not [name for name in judged.asked if name.endswith(" missing")]


def test_what_it_asks_of_the_chip_is_written_down(judged: Judged):
    assert judged.asked <= written_down(str(judged.setup).removesuffix("-tp2")), f"see {NEEDS.name}"


def written_down(column: str) -> set[str]:
    """Return what the table says of a model: the rows that are marked in its column."""
    lines = [line for line in NEEDS.read_text().splitlines() if line.startswith("|")]
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines]
    index = rows[0].index(column)
    return {row[0] for row in rows[2:] if row[index]}
