"""``sglang-fl bisect`` on the simulated chip, where layer 1 stands at the chip's own dispatch key."""

import pytest

from tests.engine.planted import FAULTS, Bisected, assert_found, bisect_planted

pytestmark = pytest.mark.timeout(700)


@pytest.fixture(scope="module")
def bisected(tiny_model, simulating, tmp_path_factory) -> Bisected:
    def environment(settings: dict[str, str]) -> dict[str, str]:
        return simulating("mlu", {"FAULTS_CHIP": "mlu", **settings})

    return bisect_planted(FAULTS, tiny_model, tmp_path_factory.mktemp("bisect"), environment)


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_found_by_its_name_and_nothing_else_is(bisected: Bisected, fault: str):
    assert_found(fault, bisected[0][fault])
