"""The names by which SGLang convolves are in every supported release as they were read, and called alike."""

import ast
from collections.abc import Iterator

import pytest

from sglang_fl.sglang_adapter.layers.causal_convolution import _SOURCES, MODULES, NAMES
from tests.releases.sources import RELEASES, parsed, source

pytestmark = pytest.mark.timeout(300)

STATES = {"conv_states", "query_start_loc", "cache_indices", "has_initial_state", "activation"}
#: What calls pass by its place, and what they pass by its name and the adapters know.
PASSED = {
    "causal_conv1d_fn": ({3}, STATES | {"seq_lens_cpu"}),
    "causal_conv1d_update": ({4, 5}, {"activation", "conv_state_indices"}),
}
#: Options that the adapters leave to SGLang.
DRAFTED = {
    "intermediate_conv_window",
    "intermediate_state_indices",
    "retrieve_next_token",
    "retrieve_next_sibling",
    "retrieve_parent_token",
}
#: A variable of ``MambaMixer2`` that is one of the names.
STANDS_FOR = {"ccfn": "causal_conv1d_fn", "ccu": "causal_conv1d_update"}


def names_of(backend: str) -> set[str]:
    return {adapter.layer_class.rpartition(".")[2] for adapter in NAMES[backend]}


def calls_of(tree: ast.Module, names: set[str]) -> Iterator[tuple[str, ast.Call]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            name = STANDS_FOR.get(node.func.id, node.func.id)
            if name in names:
                yield name.removesuffix("_triton"), node


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("backend", MODULES)
def test_each_call_passes_what_the_adapters_know(backend: str, release: str):
    found = list(calls_of(parsed(source(release, MODULES[backend])), names_of(backend)))
    assert {name for name, _ in found} == set(PASSED)
    for name, call in found:
        places, keywords = PASSED[name]
        # Without a name: {"block_table": ...}, where there is a table.
        passed = {keyword.arg for keyword in call.keywords} - DRAFTED - {None}
        assert len(call.args) in places, ast.unparse(call)
        assert passed <= keywords, ast.unparse(call)
        assert name != "causal_conv1d_fn" or passed >= STATES, ast.unparse(call)


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("backend", MODULES)
def test_on_cuda_each_name_is_a_function_that_the_adapters_know(backend: str, release: str):
    tree = parsed(source(release, MODULES[backend]))
    imported = {
        alias.asname or alias.name: node.module
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module in _SOURCES
        for alias in node.names
    }
    assert names_of(backend) <= imported.keys()
    for module in set(imported.values()):
        defined = {n.name: n for n in parsed(source(release, module)).body if isinstance(n, ast.FunctionDef)}
        for op in PASSED:
            assert defined[op].decorator_list == []


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("backend", MODULES)
def test_each_backend_is_there(backend: str, release: str):
    module, _, name = backend.partition(":")
    classes = [n.name for n in parsed(source(release, module)).body if isinstance(n, ast.ClassDef)]
    assert name in classes
