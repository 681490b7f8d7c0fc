"""What a page shows is compared with what was printed, but for what differs between machines."""

import pytest

from tests.docs.output import masked, missing


@pytest.mark.parametrize(
    ("said", "printed"),
    [
        (
            "sglang-fl-core 0.1.0 on SGLang 0.5.23, torch 2.14.1",
            "sglang-fl-core 0.2.0 on SGLang 0.5.24, torch 3.0.0",
        ),
        ("26 questions, 24 s", "26 questions, 9.5 s"),
        ("logged in /tmp/dispatch.log", "logged in /home/me/ran.txt"),
        ("A = http://127.0.0.1:30000", "A = http://localhost:21111"),
        ("largest  0.0442   1", "largest 3.1e-06 1"),
        ("│ cpu    │ yes │", "│ cpu │ yes       │"),
        ("same: 2877 log-probabilities agree", "same: 2897 log-probabilities agree"),
    ],
)
def test_what_differs_between_machines_is_masked(said: str, printed: str):
    assert masked(said) == masked(printed)


@pytest.mark.parametrize(
    ("said", "printed"),
    [
        ("17 ops", "18 ops"),
        ("found: silu_and_mul", "found: rms_norm"),
        ("RMSNorm → flagos", "RMSNorm → vendor"),
    ],
)
def test_what_is_promised_is_not_masked(said: str, printed: str):
    assert missing(said, printed) == said


def test_lines_follow_one_another_but_where_the_page_leaves_some_out():
    printed = "a\nb\nc\nd\n"
    assert missing("b\nc\n", printed) is None
    assert missing("a\n...\nd\n", printed) is None
    assert missing("a\nc\n", printed) == "a"
    assert missing("d\n...\na\n", printed) == "a"
    assert missing("a\ne\n", printed) == "e"
