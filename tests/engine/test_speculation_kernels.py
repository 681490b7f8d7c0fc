"""The functions that take the place of SGLang's kernels for speculation, beside SGLang's own."""

import importlib
import inspect
import os
import sys
from pathlib import Path

import pytest
import torch

from sglang_fl.sglang_adapter.releases import SPECULATION
from sglang_fl.sglang_adapter.speculation import install, sampling, trees
from sglang_fl.sglang_adapter.speculation.sampling import (
    top_k_renorm_prob,
    top_p_renorm_prob,
    tree_speculative_sampling_target_only,
)
from tests.engine.release import RELEASE, present
from tests.programs import finish_started

pytestmark = [
    pytest.mark.timeout(300),
    present(RELEASE in SPECULATION, "speculation whose kernels we replace"),
]

INTERPRETED = Path(__file__).parent / "interpreted_speculation.py"
#: SGLang has them on CUDA alone, as no Triton kernel.
WITHOUT_TRITON = set(sampling.__all__)


def test_each_computes_what_sglangs_triton_kernel_does_in_the_interpreter():
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": root}
    done = finish_started([sys.executable, str(INTERPRETED)], environment, 240)
    assert done.code == 0, done.output[-3000:]
    tables = (*install._OF_ALL.values(), *install._OF_DRAFT_MODELS.values())
    replaced = {function.__name__ for functions in tables for function in functions}
    assert replaced - WITHOUT_TRITON <= done.result.keys()
    assert done.result == dict.fromkeys(done.result, 0)


@pytest.mark.parametrize(
    ("module", "function"),
    [
        (module, function)
        for table in (install._OF_ALL, install._OF_DRAFT_MODELS)
        for module, functions in table.items()
        for function in functions
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_each_has_the_name_and_the_parameters_of_sglangs(module, function):
    own = getattr(importlib.import_module(module), function.__name__)
    if own is None:
        assert function.__name__ in WITHOUT_TRITON
    else:
        assert list(inspect.signature(function).parameters) == list(inspect.signature(own).parameters)


#: Three nodes, of which the last two are children of the first.
CHILDREN, SIBLINGS = [[1, -1, -1]], [[-1, 2, -1]]
TOKENS = [[9, 1, 3]]


def draw(probs: torch.Tensor, times: int, **thresholds: float) -> torch.Tensor:
    """Return the tokens behind the root, and behind the node that was accepted or -1, (times, 2)."""
    generator = torch.Generator().manual_seed(0)
    predicts = torch.full((times * 3,), -1, dtype=torch.int32)
    accept_index = torch.full((times, 3), -1, dtype=torch.int32)
    accepted = torch.zeros(times, dtype=torch.int32)
    tree_speculative_sampling_target_only(
        predicts,
        accept_index,
        accepted,
        torch.tensor(TOKENS).repeat(times, 1),
        torch.arange(times * 3).view(times, 3),
        *(torch.tensor(rows).repeat(times, 1) for rows in (CHILDREN, SIBLINGS)),
        torch.rand(times, 3, generator=generator),
        torch.rand(times, generator=generator),
        probs.repeat(times, 1, 1),
        torch.zeros(times, *probs.shape),
        **{"threshold_single": 1.0, "threshold_acc": 1.0, **thresholds},
    )
    assert torch.equal(accepted, (accept_index >= 0).sum(1).int() - 1)
    last = predicts[accept_index.gather(1, accepted.long().unsqueeze(1)).squeeze(1).long()]
    return torch.stack((predicts.view(times, 3)[:, 0], torch.where(accepted > 0, last, -1)), 1)


def test_accepted_and_drawn_tokens_are_distributed_as_the_target_models():
    times, vocabulary = 4000, 5
    probs = torch.rand(3, vocabulary, generator=torch.Generator().manual_seed(1)).softmax(-1)
    probs[0, 4] = 0.0
    probs[0] /= probs[0].sum()
    tokens = draw(probs, times).long()
    found = torch.bincount(tokens[:, 0], minlength=vocabulary) / times
    bound = 4 * (probs[0] * (1 - probs[0]) / times).sqrt()
    assert ((found - probs[0]).abs() <= bound).all()
    for node, token in ((1, 1), (2, 3)):
        behind = tokens[tokens[:, 0] == token, 1]
        share = torch.bincount(behind, minlength=vocabulary) / len(behind)
        bound = 4 * (probs[node] * (1 - probs[node]) / len(behind)).sqrt()
        assert ((share - probs[node]).abs() <= bound).all()
    assert tokens[(tokens[:, 0] != 1) & (tokens[:, 0] != 3), 1].unique().tolist() == [-1]


def test_thresholds_accept_drafts_that_are_less_probable():
    probs = torch.tensor([[0.1, 0.2, 0.3, 0.1, 0.3]]).repeat(3, 1)
    assert set(draw(probs, 50, threshold_single=0.2)[:, 0].tolist()) == {1}
    taken = draw(probs, 2000, threshold_acc=0.5)[:, 0]
    assert abs(float((taken == 1).float().mean()) - 0.4) < 0.05


def test_a_draft_without_a_chance_is_never_accepted():
    probs = torch.zeros(3, 5)
    probs[:, 2] = 1.0
    assert draw(probs, 50, threshold_single=0.0).unique(dim=0).tolist() == [[2, -1]]


def test_nothing_left_but_rounding_gives_the_most_probable_token():
    probs = torch.zeros(3, 5)
    probs[0, 1], probs[0, 3] = 0.25, 0.75
    offer = sampling._Offer(probs, [1.0, 0.0, 0.0], TOKENS[0], (1.0, 1.0))
    assert [offer.accepts(0, child) for child in (1, 2)] == [False, False]
    assert offer.draw(0, 0.5) == 3


def test_rare_tokens_are_left_out_and_the_others_come_to_one():
    probs = torch.tensor([[0.1, 0.4, 0.2, 0.3]]).repeat(3, 1)
    by_k = top_k_renorm_prob(probs, torch.tensor([1, 2, 1 << 30]))
    torch.testing.assert_close(by_k[:2], torch.tensor([[0, 1.0, 0, 0], [0, 4 / 7, 0, 3 / 7]]))
    torch.testing.assert_close(by_k[2], probs[2])
    by_p = top_p_renorm_prob(probs, torch.tensor([0.3, 0.5, 1.0]))
    torch.testing.assert_close(by_p[:2], torch.tensor([[0, 1.0, 0, 0], [0, 4 / 7, 0, 3 / 7]]))
    torch.testing.assert_close(by_p[2], probs[2])


def test_a_mask_of_another_layout_is_refused():
    nothing = torch.zeros(1, 1, dtype=torch.long)
    with pytest.raises(trees.UnsupportedError, match="a mask of the layout 1"):
        trees.build_tree_kernel_efficient_func(*(nothing,) * 8, 1, 1, 2, 1)
