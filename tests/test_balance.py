"""How tests are dealt out: those that share what is slow to make stay together."""

from pathlib import Path

import pytest

from tests.balance import PARTS, Scheduling

ROOT = Path(__file__).parents[1]
KERNELS = "packages/sglang-fl-nvidia/tests/test_flagos.py"


def scope(test: str) -> str:
    return Scheduling._split_scope(None, test)


@pytest.mark.parametrize("file", PARTS)
def test_a_file_that_is_dealt_out_in_parts_is_there(file: str):
    assert (ROOT / file).exists()


@pytest.mark.parametrize(
    ("file", "tests", "part"),
    [
        ("tests/engine/test_models.py", ["test_a[Qwen2-VL]", "test_b[Qwen2-VL]"], "[Qwen2-VL]"),
        ("tests/releases/test_releases.py", ["test_a[0.5.15]", "test_b[0.5.15-qk_norm]"], "[0.5.15]"),
        ("tests/simulated/test_mlu.py", ["test_a[Qwen2-off]", "test_b[prompts-Qwen2-off]"], "[Qwen2-off]"),
        ("tests/simulated/test_ascend.py", ["test_a[Qwen2.5-VL-followers]"], "[Qwen2.5-VL]"),
        (
            "tests/simulated/test_families.py",
            ["test_a[GPT-2-off]", "test_b[prompts-GPT-2-off]"],
            "[GPT-2-off]",
        ),
        (
            "packages/sglang-fl-nvidia/tests/test_flagos.py",
            ["test_a[rms_norm-x]", "test_b[rms_norm-y]"],
            "[rms_norm]",
        ),
        ("tests/engine/test_bisect.py", ["test_a[fused]", "test_b"], ""),
        ("tests/releases/test_server.py", ["test_a"], ""),
    ],
)
def test_tests_that_share_a_fixture_are_one_part(file: str, tests: list[str], part: str):
    assert {scope(f"{file}::{test}") for test in tests} == {f"{file}{part}"}
