"""The pictures of the docs are what the measurements say, and say how they were measured."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from docs.pictures.diagrams import DIAGRAMS
from docs.pictures.plots import PLOTS, RESULTS
from docs.pictures.runs import RUNS
from tests.schemas import assert_fits

FOLDER = Path(__file__).parents[1] / "docs/pictures"
PICTURES = {**PLOTS, **DIAGRAMS, **RUNS}


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_is_what_its_source_says(name: str):
    drawn = PICTURES[name]()
    assert (FOLDER / f"{name}.svg").read_text() == drawn, "run: python -m docs.pictures"
    assert ElementTree.fromstring(drawn).get("aria-label")


def test_pictures_of_commands_are_of_what_these_have_written():
    assert_fits("bisect", json.loads((FOLDER / "bisect.json").read_text()))
    profiles = list(RESULTS.glob("profile_*.json"))
    assert profiles
    for path in profiles:
        assert_fits("profile", json.loads(path.read_text()))


@pytest.mark.parametrize("name", PLOTS)
def test_a_plot_names_its_source_and_its_day(name: str):
    words = " ".join(element.text or "" for element in ElementTree.fromstring(PLOTS[name]()).iter())
    source = re.search(r"Source: benchmarks/results/([\w.*-]+?):? ", words)
    assert list(RESULTS.glob(source[1].rstrip(":")))
    assert re.search(r"2\d{3}-\d\d-\d\d", words)
    assert "nan" not in PLOTS[name]()
