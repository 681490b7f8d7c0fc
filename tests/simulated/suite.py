"""What every vendor's chip must show in SGLang's real engine, simulated: tests of ``judged``.

A module imports all of it and says ``SETUPS``.
"""

import pytest

from sglang_fl.vendor import Vendor
from tests.engine.judge import assert_agrees
from tests.simulated.judge import NEEDS, Judged, judge, written_down

__all__ = [
    "judged",
    "pytest_generate_tests",
    "pytestmark",
    "test_exactly_the_expected_kernels_ran",
    "test_it_ran_on_the_chip",
    "test_tokens_and_probabilities_are_those_of_transformers",
    "test_what_it_asks_of_the_chip_is_written_down",
]

pytestmark = pytest.mark.timeout(300)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run each setup of the module once."""
    if "judged" in metafunc.fixturenames:
        metafunc.parametrize("judged", metafunc.module.SETUPS, ids=str, indirect=True, scope="module")


@pytest.fixture(scope="module")
def judged(request, tmp_path_factory, simulating, vendor) -> Judged:
    """What the engine did in one setup."""
    folder = tmp_path_factory.mktemp(vendor.name)
    return judge(request.param, folder, lambda settings: simulating(vendor.name, settings))


@pytest.mark.parametrize("asked", ["prompts", "followers"])
def test_tokens_and_probabilities_are_those_of_transformers(judged: Judged, asked: str):
    assert_agrees(judged.differences[asked])


def test_exactly_the_expected_kernels_ran(judged: Judged):
    runs = judged.setup.runs
    expected = {f"{name} → {ran}" for name, ran in runs.items()} | judged.setup.beside
    if runs and "AttentionKernels.decode" not in runs:
        expected.add("RadixAttention → sglang(torch_native)")
    assert judged.dispatched == {f"[OOT-DISPATCH] {line}" for line in expected}


def test_it_ran_on_the_chip(judged: Judged, vendor: Vendor):
    module = f"torch.{vendor.device_type}"
    assert "aten::mm.out" in judged.asked
    assert {f"{module}.current_stream", f"{module}.mem_get_info"} < judged.asked


def test_what_it_asks_of_the_chip_is_written_down(judged: Judged, vendor: Vendor):
    unlisted = judged.asked - written_down(vendor.name, judged.setup.column)
    assert not unlisted, f"add to {NEEDS.name}: {sorted(unlisted)}"
