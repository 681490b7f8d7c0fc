"""Speculation on a platform of ours: tokens are those of transformers, and drafts are accepted."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from sglang.srt.plugins import load_plugins
from sglang.srt.server_args import ServerArgs

from sglang_fl.sglang_adapter.releases import SPECULATION
from tests.engine.drafted import Target
from tests.engine.drafting_models import make_eagle, make_mtp
from tests.engine.models import BY_NAME, make_model
from tests.engine.release import RELEASE, present

pytestmark = [
    pytest.mark.timeout(300),
    present(RELEASE in SPECULATION, "speculation whose kernels we replace"),
]


@dataclass(frozen=True)
class Speculation:
    """How drafts are made, and how many are accepted.

    Parameters
    ----------
    target : which target model
    engine : arguments of ``sgl.Engine``
    first, again : tokens that each step must come to at least, on average over all requests, in the first
        answers and in the second ones; 1 without any draft accepted
    draft : the folder with the draft model beside that of the target, if it is one of its own
    """

    target: str
    engine: dict[str, Any]
    first: float
    again: float
    draft: str | None = None


def drafts(steps: int, branches: int, tokens: int) -> dict[str, int]:
    return {
        "speculative_num_steps": steps,
        "speculative_eagle_topk": branches,
        "speculative_num_draft_tokens": tokens,
    }


CHAIN, TREE = drafts(3, 1, 4), drafts(3, 2, 8)
CASES = {
    # What was answered once is found in the corpus the second time; a step has 12 drafts at most.
    "ngram": Speculation("llama", {"speculative_algorithm": "NGRAM"}, first=1.0, again=8.0),
    "ngram, windows": Speculation("granite", {"speculative_algorithm": "NGRAM"}, first=1.0, again=8.0),
    "ngram, pages": Speculation(
        "llama",
        {"speculative_algorithm": "NGRAM", "speculative_ngram_max_bfs_breadth": 1, "page_size": 16},
        first=1.0,
        again=8.0,
    ),
    "eagle": Speculation("llama", {"speculative_algorithm": "EAGLE", **CHAIN}, 3.5, 3.5, "draft"),
    "eagle, trees": Speculation("llama", {"speculative_algorithm": "EAGLE", **TREE}, 3.5, 3.5, "draft"),
    "eagle, pages": Speculation(
        "llama", {"speculative_algorithm": "EAGLE", **CHAIN, "page_size": 16}, 3.5, 3.5, "draft"
    ),
    "mtp": Speculation("deepseek", {"speculative_algorithm": "NEXTN", **CHAIN}, 3.4, 3.4),
    "standalone, windows": Speculation(
        "granite", {"speculative_algorithm": "STANDALONE", **CHAIN}, 2.7, 2.7, "target"
    ),
}


#: Further arguments, and what a refused start says. The model is Llama, or with states for each request.
REFUSED = {
    "another algorithm": ({"speculative_algorithm": "EAGLE3"}, "EAGLE3: its kernels do not run on cpu"),
    "states": ({"speculative_algorithm": "NGRAM"}, "this model keeps a state for each request"),
    "attention": (
        {"speculative_algorithm": "NGRAM", "decode_attention_backend": "torch_native"},
        "drafted tokens are checked by the attention backend sglang_fl. Leave torch_native out.",
    ),
    "attention of the draft": (
        {"speculative_algorithm": "eagle", "speculative_draft_attention_backend": "triton"},
        "--speculative-draft-attention-backend triton is no part of what runs on cpu",
    ),
    "option": (
        {"speculative_algorithm": "EAGLE", "speculative_use_rejection_sampling": True},
        "--speculative-use-rejection-sampling is no part of what runs on cpu",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_run_is_refused_before_a_model_is_loaded(name, capsys, tmp_path):
    given, message = REFUSED[name]
    family = BY_NAME["Qwen3-Next" if name == "states" else "Qwen2"]
    config = family.config()
    config.architectures = [family.model._model_mapping[type(config)].__name__]
    config.save_pretrained(tmp_path)
    load_plugins()
    arguments = ServerArgs(model_path=str(tmp_path), device="cpu", skip_tokenizer_init=True, **given)
    with pytest.raises(SystemExit, match="2"):
        arguments.resolve_once()
    (line,) = capsys.readouterr().err.splitlines()[-1:]
    assert line.startswith(f"sglang-fl: --speculative-algorithm {given['speculative_algorithm']}: ")
    assert message in line


def make_granite(folder: Path) -> torch.nn.Module:
    family = BY_NAME["Granite-SWA"]
    return make_model(family, folder / "target")


@pytest.fixture(scope="module")
def target_named(tmp_path_factory) -> Callable[[str], Target]:
    makers = {"llama": make_eagle, "deepseek": make_mtp, "granite": make_granite}
    made: dict[str, Target] = {}

    def named(name: str) -> Target:
        if name not in made:
            folder = tmp_path_factory.mktemp(name)
            made[name] = Target(folder, makers[name](folder))
        return made[name]

    return named


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_tokens_are_those_without_speculation_and_drafts_are_accepted(
    case: Speculation, target_named, environment_of, tmp_path
):
    target = target_named(case.target)
    log, engine = tmp_path / "dispatch.log", dict(case.engine)
    if case.draft is not None:
        engine["speculative_draft_model_path"] = str(target.folder / case.draft)
    accepted = target.speculate(engine, environment_of({"SGLANG_FL_DISPATCH_LOG": str(log)}), tmp_path)
    assert accepted["first"] >= case.first
    assert min(accepted["again"], accepted["drawn"]) >= case.again
    assert "[OOT-DISPATCH] AttentionKernels.extend → reference(reference)" in log.read_text().splitlines()
