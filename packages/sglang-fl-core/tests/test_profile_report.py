"""A profile as it is shown: a table for people, documented data for programs, a page that fetches nothing."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any
from xml.etree import ElementTree

import pytest

from sglang_fl.profiling.picture import as_page
from sglang_fl.profiling.pieces import Who
from sglang_fl.profiling.profile import Profile, Request
from sglang_fl.profiling.report import SCHEMA, as_data
from sglang_fl.profiling.shares import phases_of
from sglang_fl.profiling.steps import steps_of
from sglang_fl.profiling.table import WIDTH, as_lines
from sglang_fl.profiling.trace import trace_of

LONG = "fused_recurrent_gated_delta_rule_packed_decode"


def event(category: str, name: str, start: float, end: float) -> dict[str, Any]:
    place = {"pid": 1, "tid": 1, "ts": start, "dur": end - start}
    return {"ph": "X", "cat": category, "name": name, **place, "args": {}}


def step(phase: str, start: float, pieces: dict[str, float], tokens: int = 4) -> list[dict[str, Any]]:
    """Return the events of a step in which these ranges, each with one op, follow one another with gaps."""
    events, at = [], start
    for name, length in pieces.items():
        if name:
            events.append(event("user_annotation", f"sglang_fl|{name}", at, at + length))
        events.append(event("cpu_op", "aten::mm", at, at + length))
        at += length + 10
    return [event("user_annotation", f"sglang_fl|step|{phase}|4|{tokens}", start, at), *events]


@pytest.fixture
def profile() -> Profile:
    decode = {
        "ours|rms_norm|flagos|": 300,
        f"ours|{LONG}|reference|": 100,
        "layer|TopK": 200,
        "attention|<b>triton": 300,
        "": 96,
        "layer|Sampler": 2,
        "layer|LogitsProcessor": 2,
    }
    prefill = {"ours|rms_norm|vendor|": 1e6, "layer|ParallelLMHead": 1e6}
    events = [
        *step("decode", 0, decode),
        *step("decode", 5000, decode),
        *step("prefill", 9000, prefill, 1024),
    ]
    return Profile(
        "MODEL",
        ("--tp", "1"),
        Request(4, 256, 2),
        {"SGLang": "0.5.23"},
        "a chip & more",
        "cpu",
        ranks=1,
        is_device=False,
        phases=phases_of([steps_of(trace_of(events))]),
        our_ops={"TopK": "topk_softmax"},
    )


def test_lines_fit_a_terminal_and_shares_add_up(profile: Profile):
    lines = list(as_lines(profile))
    assert max(map(len, lines)) <= WIDTH
    rows = [re.findall(r"(\d+\.\d)%", line) for line in lines]
    decode = [float(row[0]) for row in rows if row and float(row[0]) < 100 and not line_is_prefill(row, rows)]
    assert sum(decode) == pytest.approx(100.0)
    (total,) = (line for line in lines if line.endswith("all that ran"))
    assert total.split()[:5] == ["100.0%", "1000", "100.0%", "2.0", "s"]


def line_is_prefill(row: list[str], rows: list[list[str]]) -> bool:
    """Whether a row has one share alone, of prefill."""
    return len(row) == 1 and float(row[0]) == 50.0


def test_a_name_that_does_not_fit_is_cut_and_small_pieces_are_one_row(profile: Profile):
    text = "\n".join(as_lines(profile))
    assert "fused_recurrent_gated_delta_rule_..." in text
    assert "Sampler" not in text
    assert re.search(r"0\.4% +4\.0 +- +- +2 smaller pieces$", text, re.MULTILINE)


def test_the_end_says_what_is_ours_and_what_to_port_next(profile: Profile):
    text = " ".join(" ".join(as_lines(profile)).split())
    assert "On ours in decode: 40.0 % (flagos 30.0 %, reference 10.0 %)." in text
    assert "On ours in prefill: 50.0 % (vendor 50.0 %)." in text
    assert (
        "Not on ours in decode, the largest first: 1. RadixAttention (<b>triton) 30.0 % "
        "(`sglang-fl why decode_attention`); 2. TopK 20.0 % "
        "(`sglang-fl why topk_softmax`); 3. outside of layers 9.6 %."
    ) in text
    assert "Gaps: in 6.5 % of a decode step and 0.0 % of a prefill step Python runs, and no op" in text


def test_a_device_that_the_profiler_does_not_see_is_told(profile: Profile):
    blind = replace(profile, device_type="npu")
    assert "WARNING: this PyTorch's profiler sees no npu device." in " ".join(as_lines(blind))
    assert "The profiler saw no npu device" in as_page(blind)
    assert "WARNING" not in " ".join(as_lines(profile))
    assert "saw no" not in as_page(profile)


def test_a_number_is_not_parted_from_its_unit(profile: Profile):
    for length in range(40, 60):
        lines = list(as_lines(replace(profile, model="m" * length)))
        assert [line for line in lines if re.match(r" *(%|us|ms|s)\b", line)] == []


def test_the_data_are_as_their_schema_says(profile: Profile, fits: Callable[[str, object], None]):
    fits("profile", as_data(profile))


def test_the_data_are_plain_and_add_up(profile: Profile):
    data = json.loads(json.dumps(as_data(profile), allow_nan=False))
    assert data["schema"] == SCHEMA
    for phase in data["phases"]:
        assert sum(piece["share"] for piece in phase["pieces"]) == pytest.approx(1, abs=1e-4)
        assert sum(piece["us"] for piece in phase["pieces"]) == pytest.approx(phase["busy_us"], abs=0.1)
        assert phase["busy_us"] + phase["idle_us"] == pytest.approx(phase["step_us"], abs=0.1)
        for piece in phase["pieces"]:
            assert sum(op["us"] for op in piece["ops"]) == pytest.approx(piece["us"], abs=0.1)
    assert {piece["who"] for phase in data["phases"] for piece in phase["pieces"]} <= {w.value for w in Who}


def test_the_page_is_whole_and_fetches_nothing(profile: Profile):
    page = as_page(profile)
    assert "<b>triton" not in page
    assert "prefers-color-scheme: dark" in page
    assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)|<script|<link|<img|@import|url\(", page) == []
    for drawing in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(drawing)
    assert "Decode: 40.0 % on ours" in page
    assert "To port next: RadixAttention (&lt;b&gt;triton) (30.0 %), TopK (20.0 %)" in page


def test_a_bar_of_the_page_adds_up(profile: Profile):
    bar = re.search(r"<svg.*?</svg>", as_page(profile), re.DOTALL)
    assert bar
    widths = {r.get("class"): float(str(r.get("width"))) for r in ElementTree.fromstring(bar[0])}
    assert widths == {"flagos": 300, "reference": 100, "sglang": 600}


def test_every_colour_of_the_page_is_defined_for_light_and_dark(profile: Profile):
    page = as_page(profile)
    light, dark = re.findall(r":root \{([^}]*)\}", page)
    for who in Who:
        assert f"--{who.value}:" in light
        assert f"--{who.value}:" in dark
        assert f".{who.value} {{" in page
