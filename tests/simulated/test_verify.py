"""``SGLANG_FL_VERIFY`` on the simulated chip: the test of the CPU, with the same kernels on the chip."""

from collections.abc import Callable, Mapping

import pytest

from tests.engine.test_verify import (  # noqa: F401 - the test runs here as well
    test_a_wrong_kernel_is_told_of_once_for_each_shape_and_its_result_is_served,
)

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="session")
def environment_of(simulating) -> Callable[[Mapping[str, str]], dict[str, str]]:
    chosen = {"SGLANG_FL_PLATFORM": "faulty", "FAULTS_CHIP": "mlu"}
    return lambda settings: simulating("mlu", {**chosen, **settings})
