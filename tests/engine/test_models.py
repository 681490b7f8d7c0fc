"""Model families on the real engine, judged by transformers on the same weights in float32.

Every op runs on an implementation of a vendor package, which is right until a mistake is planted in
it. Without one the engine must agree with transformers; with any one of them it must not.
"""

from dataclasses import replace

import pytest

from sglang_fl.sglang_adapter.seams import installed_version
from tests.engine.judge import (
    LIMIT,
    Bench,
    Judged,
    assert_agrees,
    bench_in,
    expected_classes,
    judge,
    mistakes_in,
    visible,
)
from tests.engine.models import ATTENTION, FAMILIES, OURS

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="session")
def bench(tmp_path_factory, environment_of) -> Bench:
    return bench_in(tmp_path_factory.mktemp("families"), environment_of)


@pytest.fixture(
    scope="module", params=[family for family in FAMILIES if installed_version() in family.releases], ids=str
)
def judged(request, tmp_path_factory, bench: Bench) -> Judged:
    """Run one engine for a family and compare all that it says."""
    family = request.param
    if request.config.getoption("--attention-backend") and "AttentionKernels.decode" not in family.runs:
        family = replace(family, runs={**family.runs, **ATTENTION}, engine={**family.engine, **OURS})
    verdict = judge(family, tmp_path_factory.mktemp("family"), bench)
    print(row_of(verdict))
    return verdict


def row_of(judged: Judged) -> str:
    """Return the family's row of the table in ``docs/models.md``; ``pytest -s`` shows it."""
    prompts, followers = judged.differences["prompts"], judged.differences["followers"]
    classes = ", ".join(f"`{name}`" for name in sorted(expected_classes(judged.family)))
    cached = max(followers.prefill, followers.decode)
    figures = (prompts.prefill, prompts.decode, cached, least_noticed(judged))
    cells = (judged.family.name, judged.family.covers, classes, *(f"{figure:.1e}" for figure in figures))
    return f"| {' | '.join(cells)} |"


def least_noticed(judged: Judged) -> float:
    """Return the difference that the least visible mistake makes."""
    return min((visible(judged, name) for name in mistakes_in(judged.family)), default=0.0)


def test_prompts_of_many_lengths_agree(judged: Judged):
    assert_agrees(judged.differences["prompts"])


def test_requests_with_a_cached_prefix_agree(judged: Judged):
    assert min(judged.cached_tokens) >= 30 * judged.family.is_cached
    page = judged.family.engine.get("page_size", 1)
    assert [count % page for count in judged.cached_tokens] == [0] * len(judged.cached_tokens)
    assert_agrees(judged.differences["followers"])


def test_exactly_the_expected_layer_classes_ran_on_ours(judged: Judged):
    expected = expected_classes(judged.family)
    lines = {f"[OOT-DISPATCH] {name} → vendor(vendor.mistaken)" for name in expected}
    if "AttentionKernels.decode" not in expected:
        lines.add("[OOT-DISPATCH] RadixAttention → sglang(torch_native)")
    lines |= {f"[OOT-DISPATCH] {name} → sglang(native)" for name in judged.family.left}
    assert judged.dispatched == lines


def test_every_planted_mistake_is_noticed(judged: Judged):
    missed = {
        mistake: judged.differences[mistake]
        for mistake in mistakes_in(judged.family)
        if visible(judged, mistake) <= LIMIT and judged.differences[mistake].tokens == 0
    }
    assert missed == {}


def test_without_the_mistakes_it_agrees_again(judged: Judged):
    assert_agrees(judged.differences["again"])


def test_weights_that_are_replaced_while_it_runs_are_used(judged: Judged):
    assert_agrees(judged.differences["weights"])
