"""A bisection as a page: what was on in each step, what that showed, and nothing that is fetched."""

import json
import re
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from sglang_fl.bisect.picture import as_page
from sglang_fl.bisect.readings import Distance
from sglang_fl.bisect.reproduction import PAGE, broken, with_page
from sglang_fl.bisect.steps import Asks, Step, Steps
from sglang_fl.bisect.verdict import Culprit, Outcome, Verdict
from sglang_fl.logs.json_text import json_text

UNITS = ("rms_norm", "silu_and_mul", "aten::mul.Tensor", "aten::<b>add")
EVERYTHING = Step(Asks.EVERYTHING, "everything on", UNITS, (), 0.2, 3, False, "0.2 nats at most", 1.25)
HALF = Step(Asks.SOME, "2 ops on", UNITS[:2], (), 0.2, 3, False, "0.2 nats at most", 0.5)
RIGHT = Step(Asks.SOME, "rms_norm on", UNITS[:1], (), 0.0, 0, True, "equal", 0.5)
GUILTY = Step(Asks.SOME, "silu_and_mul on", UNITS[1:2], (), 0.2, 3, False, "0.2 nats at most", 0.5)
START = Step(Asks.START, "the engine", text="it runs", seconds=20.0)
PLANTED = Step(Asks.PLANTED, "a planted mistake", (), (), 0.3, 9, False, "0.3 nats at most", 0.5)
FOUND = Verdict(
    Outcome.FOUND,
    "silu_and_mul",
    (Culprit(2, "silu_and_mul", "flagos(x) <script>:f", "model.layers.0", inputs="x.pt"),),
    {"threshold": 3e-5},
    limits=("a & b is not judged: large",),
    uncalled=("aten::cos",),
    steps=(START, PLANTED, EVERYTHING, HALF, RIGHT, GUILTY),
)


def bars(page: str) -> list[list[tuple[str, float]]]:
    """Return the stretches of each step's bar: kind, and part of the length."""
    items = re.findall(r"<li class=\"step.*?</li>", page, re.DOTALL)
    drawings = [svg for item in items for svg in re.findall(r"<svg.*?</svg>", item, re.DOTALL)]
    return [
        [(str(r.get("class")), float(str(r.get("width"))) / 1000) for r in ElementTree.fromstring(drawing)]
        for drawing in drawings
    ]


def test_a_bar_shows_what_was_on_and_where_the_guilty_one_is():
    assert bars(as_page(FOUND, "MODEL")) == [
        [("bad", 0.25), ("guilty", 0.25), ("bad", 0.5)],
        [("bad", 0.25), ("guilty", 0.25), ("empty", 0.5)],
        [("good", 0.25), ("empty", 0.75)],
        [("empty", 0.25), ("guilty", 0.25), ("empty", 0.5)],
    ]


def test_each_step_says_what_was_on_how_far_it_was_and_how_long_it_took():
    items = re.findall(r"<li class=\"step (.*?)</li>", as_page(FOUND, "MODEL"), re.DOTALL)
    said = [" ".join(re.sub(r"<[^>]*>", " ", item).split()) for item in items]
    assert [line.partition('"')[0] for line in items] == ["", "good", "bad", "bad", "good", "bad"]
    assert said[0].endswith("the engine it runs 20 s")
    assert said[1].endswith("a planted mistake is seen: 0.3 nats at most 0.5 s")
    assert f"everything on {', '.join(UNITS[:3])}, aten::&lt;b&gt;add" in said[2]
    assert "differs: 0.2 nats at most 1.25 s" in said[2]
    assert "agrees: equal 0.5 s" in said[4]


@pytest.mark.parametrize(
    "verdict",
    [
        FOUND,
        Verdict(Outcome.NOTHING_FOUND, "no op makes the model differ", steps=(START, RIGHT)),
        Verdict(Outcome.SET_UP_BROKEN, "SGLang ended"),
        Verdict(Outcome.CANNOT_DECIDE, "use other prompts", steps=(START, replace(PLANTED, agrees=True))),
    ],
    ids=lambda verdict: verdict.outcome.name,
)
def test_the_page_is_whole_and_fetches_nothing(verdict: Verdict):
    page = as_page(verdict, "MODEL <i> --tp 2")
    assert "<b>add" not in page
    assert "<script" not in page
    assert "MODEL &lt;i&gt; --tp 2" in page
    assert re.findall(r"https?://(?!www\.w3\.org/2000/svg)|<link|<img|@import|url\(", page) == []
    body = re.search(r"<body>.*</body>", page, re.DOTALL)
    assert body
    ElementTree.fromstring(body[0])  # each tag is closed
    light, dark = re.findall(r":root \{([^}]*)\}", page)
    used = {*re.findall(r"var\(--(\w+)\)", page)}
    for screen in (light, dark):
        assert used <= {*re.findall(r"--(\w+):", screen)}


def test_without_a_culprit_nothing_is_guilty():
    page = as_page(Verdict(Outcome.NOTHING_FOUND, "nothing", steps=(replace(EVERYTHING, agrees=True),)), "M")
    assert "nothing found: nothing" in page
    assert "Guilty" not in page
    assert bars(page) == [[("good", 1.0)]]


def test_a_step_that_did_not_end_is_the_last_one_and_says_so(tmp_path: Path):
    said: list[str] = []
    begun: list[str] = []
    steps = Steps(said.append, begun.append)
    with steps.step(Asks.TWICE, "the same batch twice") as step:
        step.found(Distance(), agrees=True)
    error = RuntimeError("a rank has ended")
    with (
        pytest.raises(RuntimeError, match="a rank has ended"),
        steps.step(Asks.EVERYTHING, "everything on", UNITS),
    ):
        raise error
    assert begun == ["the same batch twice", "everything on"]
    assert said == ["the same batch twice: equal"]
    verdict = broken(error, tmp_path, steps)
    written = json.loads((tmp_path / "verdict.json").read_text())["steps"]
    assert [(step["asks"], step["text"]) for step in written] == [("twice", "equal"), ("everything", "")]
    page = as_page(verdict, "MODEL")
    assert "set up broken: RuntimeError: a rank has ended" in page
    assert "it did not end" in page.partition("everything on")[2]
    assert bars(page) == [[("bad", 1.0)]]


def test_a_page_that_cannot_be_written_is_a_limit(tmp_path: Path):
    (tmp_path / PAGE).mkdir()
    (limit,) = with_page(Verdict(Outcome.NOTHING_FOUND, "nothing"), tmp_path, "MODEL").limits
    assert limit == f"{tmp_path / PAGE} cannot be written: Is a directory"


def test_a_secret_is_not_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ACME_TOKEN", "a<secret>&more")
    with_page(Verdict(Outcome.SET_UP_BROKEN, "401 for a<secret>&more"), tmp_path, "M --x a<secret>&more")
    text = (tmp_path / PAGE).read_text()
    assert "secret" not in text
    assert text.count("***") == 3  # the title has it too


def test_a_distance_that_is_infinite_is_a_text_in_the_data():
    verdict = replace(FOUND, numbers={"noise": float("inf")}, steps=(replace(HALF, distance=float("inf")),))
    data = json.loads(json_text(verdict.as_json()), parse_constant=pytest.fail)
    assert (data["numbers"]["noise"], data["steps"][0]["distance"]) == ("inf", "inf")
