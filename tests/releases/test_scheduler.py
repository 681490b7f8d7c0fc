"""The two moments of a scheduler at which layer 1 enters, in the source of each supported release."""

import ast
from pathlib import Path

import pytest

from release.sglang_wheels import unpacked
from sglang_fl.sglang_adapter.seams import MODELS_LOADED, SCHEDULER, SERVING
from tests.releases.sources import RELEASES

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module", params=RELEASES)
def methods(request) -> dict[str, list[str]]:
    """The methods of ``Scheduler``, each with the names of the methods of its own that it calls, in order."""
    path = unpacked("sglang", request.param) / Path(*SCHEDULER.split(".")).with_suffix(".py")
    (scheduler,) = (
        node
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef) and node.name == "Scheduler"
    )
    return {node.name: calls(node) for node in scheduler.body if isinstance(node, ast.FunctionDef)}


def calls(function: ast.FunctionDef) -> list[str]:
    nodes = (node.func for node in ast.walk(function) if isinstance(node, ast.Call))
    own = (node for node in nodes if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "self")
    return [node.attr for node in sorted(own, key=lambda node: (node.lineno, node.col_offset))]


def test_both_models_are_loaded_before_and_nothing_is_captured(methods: dict[str, list[str]]):
    order = ["init_tp_model_worker", MODELS_LOADED.method, "init_memory_pools", "init_all_cuda_graphs"]
    assert [name for name in methods["init_model_worker"] if name in order] == order
    assert "init_model_worker" in methods["__init__"]
    assert all("init_all_cuda_graphs" not in methods[name] for name in order[:2])


def test_serving_begins_with_a_method(methods: dict[str, list[str]]):
    assert SERVING.method in methods
    assert SERVING.method not in methods["__init__"]


def test_a_scheduler_begins_in_the_module_that_tells_it_apart():
    assert MODELS_LOADED.owner == SERVING.owner == f"{SCHEDULER}.Scheduler"
