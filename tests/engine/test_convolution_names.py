"""The convolution that SGLang's backends of linear attention call by names of a module.

Their constructors and kernels need a GPU, so objects are made without, and functions of this file stand for
SGLang's. SGLang's kernels themselves run in ``test_sglangs_convolution`` of the NVIDIA package.
"""

import functools
import importlib
import logging
import operator
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.layers.attention.linear.gdn_backend import GDNAttnBackend
from sglang.srt.plugins.hook_registry import HookRegistry, HookType
from torch import Tensor

from sglang_fl.dispatch import faults
from sglang_fl.dispatch.kept_calls import KeptCalls, kept_files
from sglang_fl.dispatch.life import MOST_EXCLUDED, LayerLife, is_ours
from sglang_fl.dispatch.live_check import LiveCheck
from sglang_fl.logs.dispatch_log import DispatchLog
from sglang_fl.ops import OPS
from sglang_fl.sglang_adapter import methods
from sglang_fl.sglang_adapter.hook import LayerHook
from sglang_fl.sglang_adapter.layer_lists import LayerLists
from sglang_fl.sglang_adapter.layers.causal_convolution import MODULES, NAMES
from sglang_fl.sglang_adapter.methods import methods_of
from sglang_fl.sglang_adapter.switchable_layers import SwitchableLayers
from tests.engine.dispatch_lines import told
from tests.engine.every_layer import references
from tests.engine.release import SEAM, present

FN, UPDATE = "causal_conv1d_fn", "causal_conv1d_update"
OWN = "SGLang's own"
SOURCE = "sglang.kernels.ops.mamba.causal_conv1d_triton"
GDN = next(backend for backend in MODULES if backend.endswith(":GDNAttnBackend"))
Calls = list[tuple[str, tuple[Any, ...], dict[str, Any]]]


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    """Let each test hear of its own reasons."""
    faults._said.clear()
    methods._warn_once.cache_clear()
    with torch.no_grad():
        yield


def sglangs(name: str, calls: Calls, module: str = SOURCE) -> Callable[..., Any]:
    """Make a function that looks as if SGLang had defined it."""

    def function(*args: Any, **kwargs: Any) -> str:
        calls.append((name, args, kwargs))
        return OWN

    function.__module__, function.__name__ = module, name.removesuffix("_triton")
    return function


@pytest.fixture
def calls() -> Calls:
    """Those of SGLang's functions."""
    return []


@pytest.fixture(params=MODULES, ids=lambda backend: backend.rpartition(":")[2])
def named(request, calls: Calls, monkeypatch) -> SimpleNamespace:
    return place_of(request.param, calls, monkeypatch)


@pytest.fixture
def gdn(calls: Calls, monkeypatch) -> SimpleNamespace:
    return place_of(GDN, calls, monkeypatch)


def place_of(backend: str, calls: Calls, monkeypatch) -> SimpleNamespace:
    """Return a hybrid backend with an object of this class, the module of its names, and what they mean."""
    module: ModuleType = importlib.import_module(MODULES[backend])
    owner, _, name = backend.partition(":")
    linear = object.__new__(getattr(importlib.import_module(owner), name))
    names = [adapter.layer_class.rpartition(".")[2] for adapter in NAMES[backend]]
    own = {name: sglangs(name, calls) for name in names}
    for function_name, function in own.items():
        monkeypatch.setattr(module, function_name, function, raising=False)
    return SimpleNamespace(
        backend=SimpleNamespace(linear_attn_backend=linear), title=name, module=module, names=names, own=own
    )


def op_of(name: str) -> str:
    return name.removesuffix("_triton")


def given_of(name: str) -> dict[str, Any]:
    case = {FN: "mixed", UPDATE: "odd-requests"}[op_of(name)]
    return next(known for known in OPS[op_of(name)].cases if known.name == case).arguments(torch.float32)


def call(function: Callable[..., Any], name: str, given: dict[str, Any], **more: Any) -> Any:
    """Call as all of SGLang's code does."""
    if op_of(name) == UPDATE:
        positional = ("x", "conv_states", "weight", "bias", "activation")
        rest = {"conv_state_indices": given["conv_state_indices"]}
    else:
        positional = ("x", "weight", "bias")
        rest = {key: value for key, value in given.items() if key not in positional}
        rest["seq_lens_cpu"] = given["query_start_loc"].diff().tolist()
    return function(*(given[key] for key in positional), **rest | more)


def clones(given: dict[str, Any]) -> dict[str, Any]:
    return {name: v.clone() if isinstance(v, Tensor) else v for name, v in given.items()}


def sglang_first(log: Path) -> LayerHook:
    return references(log, sglang_first="flagos is no default here")


def test_calls_by_each_name_are_the_ops(named, calls: Calls, log: Path):
    references(log).replace_methods(named.backend)
    for name in named.names:
        assert isinstance(getattr(named.module, name), LayerLife)
        given = given_of(name)
        expected = clones(given)
        y = OPS[op_of(name)].reference(**expected)
        for _ in range(2):  # undecided, and bound
            again = clones(given)
            assert torch.equal(call(getattr(named.module, name), name, again), y)
            assert torch.equal(again["conv_states"], expected["conv_states"])
        assert is_ours(getattr(named.module, name))
        assert not isinstance(getattr(named.module, name), LayerLife)
    assert calls == []
    assert told(log) == [f"{named.title}.{name} → reference(reference)" for name in named.names]


def test_where_sglangs_own_runs_the_name_means_sglangs_function_again(named, calls: Calls, log: Path):
    sglang_first(log).replace_methods(named.backend)
    for name in named.names:
        given = given_of(name)
        assert call(getattr(named.module, name), name, given, pad_slot_id=-1) == OWN
        assert getattr(named.module, name) is named.own[name]
        (_, args, kwargs) = calls.pop()
        assert args[0] is given["x"]
        assert kwargs["pad_slot_id"] == -1
    assert told(log) == [f"{named.title}.{name} → sglang(native)" for name in named.names]


def test_a_list_leaves_a_backend_or_an_op_to_sglang(gdn, log: Path):
    resolutions = references()._resolutions
    for left_out in ("GDNAttnBackend", UPDATE):
        lists = LayerLists(black=frozenset([left_out]), title="SGLANG_FL_OOT_BLACKLIST")
        LayerHook(resolutions, DispatchLog(log), lists).replace_methods(gdn.backend)
        assert call(gdn.module.causal_conv1d_update, UPDATE, given_of(UPDATE)) == OWN
        assert gdn.module.causal_conv1d_update is gdn.own[UPDATE]


#: What SGLang passes to check drafted tokens.
DRAFTED = {
    "intermediate_conv_window": torch.zeros(1),
    "intermediate_state_indices": torch.zeros(1),
    "retrieve_next_token": None,
}
EXCLUDED = {
    "intermediate states": (UPDATE, DRAFTED, "with intermediate_conv_window"),
    "no indices for an update": (UPDATE, {"conv_state_indices": None}, "no indices of states"),
    "a ring of inputs": (UPDATE, {"cache_seqlens": torch.zeros(7)}, "with cache_seqlens"),
    "no indices for prompts": (FN, {"cache_indices": None}, "no indices of states"),
    "another padding": (FN, {"pad_slot_id": 0}, "with pad_slot_id"),
    "another activation": (FN, {"activation": "gelu"}, "the activation 'gelu'"),
    "an option of a later release": (FN, {"initial_states_out": 3}, "with initial_states_out"),
    "states of another length": (FN, {"conv_states": torch.zeros(9, 48, 5)}, "is no pool of states"),
}


@pytest.mark.parametrize("case", EXCLUDED)
def test_an_excluded_call_is_sglangs_in_call_1_3_and_1000_and_said_once(
    case: str, gdn, calls: Calls, log: Path, caplog
):
    caplog.set_level(logging.INFO, "sglang_fl")
    name, more, reason = EXCLUDED[case]
    references(log).replace_methods(gdn.backend)
    given = given_of(name)
    for number in range(1, 1001):
        result = call(getattr(gdn.module, name), name, given, **({} if number == 2 else more))
        assert (result is OWN) == (number != 2)
    assert len(calls) == 999
    for _, _, kwargs in (calls[0], calls[-1]):
        assert all(kwargs[key] is value for key, value in more.items())
    said = [m for m in caplog.messages if "a call is left to SGLang" in m]
    assert len(said) == 1
    assert reason in said[0]
    assert told(log) == [
        f"GDNAttnBackend.{name} → {ran}" for ran in ("sglang(native)", "reference(reference)")
    ]


@pytest.mark.parametrize("name", [FN, UPDATE])
def test_more_arguments_by_position_are_handed_on_as_they_are(name: str, gdn, calls: Calls, log: Path):
    references(log).replace_methods(gdn.backend)
    given = given_of(name)
    if name == FN:
        places = (given["conv_states"], given["query_start_loc"], [5, 1, 70, 2])
        named = {"cache_indices": given["cache_indices"], "has_initial_state": given["has_initial_state"]}
        begin = (given["x"], given["weight"], given["bias"])
    else:
        places, named = (None, given["conv_state_indices"]), {}
        begin = tuple(given[key] for key in ("x", "conv_states", "weight", "bias", "activation"))
    for number in range(1, 4):
        if number == 2:
            assert call(getattr(gdn.module, name), name, clones(given)) is not OWN
        else:
            assert getattr(gdn.module, name)(*begin, *places, **named) is OWN
    assert [(len(args), all(map(operator.is_, args, begin + places))) for _, args, _ in calls] == [
        (len(begin + places), True)
    ] * 2
    assert all(kwargs.keys() == named.keys() for _, _, kwargs in calls)


def test_drafted_tokens_alone_give_the_name_back(gdn, calls: Calls, log: Path):
    references(log).replace_methods(gdn.backend)
    given = given_of(UPDATE)
    given["x"] = given["x"].unsqueeze(-1)
    for _ in range(MOST_EXCLUDED):
        assert gdn.module.causal_conv1d_update is not gdn.own[UPDATE]
        assert call(gdn.module.causal_conv1d_update, UPDATE, given) == OWN
    assert gdn.module.causal_conv1d_update is gdn.own[UPDATE]


def test_what_serves_sglangs_own_kernel_alone_excludes_nothing(gdn, calls: Calls, log: Path):
    references(log).replace_methods(gdn.backend)
    given = given_of(FN)
    expected = OPS[FN].reference(**clones(given))
    more = {"block_table": torch.zeros(3, 2), "pad_slot_id": -1, "validate_data": False}
    for _ in range(2):
        assert torch.equal(call(gdn.module.causal_conv1d_fn, FN, clones(given), **more), expected)
    assert calls == []


def test_without_a_word_about_states_no_sequence_has_one(gdn, log: Path):
    references(log).replace_methods(gdn.backend)
    given = given_of(FN)
    none = clones(given) | {"has_initial_state": torch.zeros_like(given["has_initial_state"])}
    expected = OPS[FN].reference(**none)
    for _ in range(2):
        found = call(gdn.module.causal_conv1d_fn, FN, clones(given), has_initial_state=None)
        assert torch.equal(found, expected)


def of_another_plugin(x: Any, *given: Any, **more: Any) -> str:
    return "another plugin's"


ANOTHERS = {
    "a function": lambda own: of_another_plugin,
    "a wrapper": lambda own: functools.wraps(own)(lambda *args, **kwargs: own(*args, **kwargs)),
    "a partial": functools.partial,
    "an object": lambda own: SimpleNamespace(own=own),
}


@pytest.mark.parametrize("another", ANOTHERS.values(), ids=ANOTHERS)
def test_a_module_with_another_plugins_function_is_left_alone(another: Any, named, log: Path, caplog):
    name = named.names[-1]
    theirs = another(named.own[name])
    setattr(named.module, name, theirs)
    for _ in range(2):  # for the draft model, too
        references(log).replace_methods(named.backend)
    assert {key: getattr(named.module, key) for key in named.names} == named.own | {name: theirs}
    (line,) = [m for m in caplog.messages if "is not SGLang's" in m]
    assert line.startswith(f"{named.title}.{name} is not SGLang's, but ")
    assert line.endswith("stay as they are")


def test_a_hook_of_another_plugin_is_left_alone(gdn, log: Path, monkeypatch):
    HookRegistry.reset()
    target = f"{gdn.module.__name__}.{UPDATE}"
    HookRegistry.register(target, lambda own, *args, **kwargs: "hooked", HookType.AROUND)
    HookRegistry.apply_hooks()
    HookRegistry.reset()
    references(log).replace_methods(gdn.backend)
    assert call(gdn.module.causal_conv1d_update, UPDATE, given_of(UPDATE)) == "hooked"
    assert gdn.module.causal_conv1d_fn is gdn.own[FN]


@pytest.mark.parametrize("hook", [references, sglang_first])
def test_what_another_plugin_puts_there_later_stays(hook: Any, gdn, log: Path):
    hook(log).replace_methods(gdn.backend)
    life = gdn.module.causal_conv1d_update
    gdn.module.causal_conv1d_update = of_another_plugin
    call(life, UPDATE, given_of(UPDATE))  # whoever holds it may still call it
    assert gdn.module.causal_conv1d_update is of_another_plugin


def test_a_name_that_is_not_there_leaves_the_others_as_they_are(named, log: Path, monkeypatch, caplog):
    gone, *others = named.names
    monkeypatch.delattr(named.module, gone)
    references(log).replace_methods(named.backend)
    assert not hasattr(named.module, gone)
    assert all(getattr(named.module, name) is named.own[name] for name in others)
    assert caplog.messages == []


def test_functions_that_sglang_has_for_other_devices_stay(gdn, calls: Calls, log: Path, caplog):
    theirs = sglangs("causal_conv1d_fn_cpu", calls, "sgl_kernel.mamba")
    gdn.module.causal_conv1d_fn = theirs
    references(log).replace_methods(gdn.backend)
    assert gdn.module.causal_conv1d_fn is theirs
    assert gdn.module.causal_conv1d_update is gdn.own[UPDATE]
    assert caplog.messages == []


def test_a_second_backend_finds_the_names_replaced_and_changes_nothing(gdn, calls: Calls, log: Path):
    hook = references(log)
    hook.replace_methods(gdn.backend)
    for _ in range(2):  # undecided, and bound
        held = gdn.module.causal_conv1d_update
        draft = SimpleNamespace(linear_attn_backend=object.__new__(GDNAttnBackend))
        hook.replace_methods(draft)
        assert gdn.module.causal_conv1d_update is held
        call(gdn.module.causal_conv1d_update, UPDATE, given_of(UPDATE))
    assert calls == []


def test_a_backend_of_another_class_has_none(log: Path):
    class Other(GDNAttnBackend):
        pass

    for linear in (object.__new__(Other), SimpleNamespace(), None):
        assert list(methods_of(SimpleNamespace(linear_attn_backend=linear))) == []


def test_bisect_switches_each_name_on_and_back(gdn, calls: Calls):
    layers = SwitchableLayers(references(), references(), SEAM)
    layers.find(torch.nn.Module(), gdn.backend)
    assert layers.ops == {FN: [f"GDNAttnBackend.{FN}"], UPDATE: [f"GDNAttnBackend.{UPDATE}"]}
    given = given_of(UPDATE)
    expected = OPS[UPDATE].reference(**clones(given))
    for _ in range(2):
        layers.switch([UPDATE])
        assert torch.equal(call(gdn.module.causal_conv1d_update, UPDATE, clones(given)), expected)
        assert gdn.module.causal_conv1d_fn is gdn.own[FN]
        layers.switch([])
        assert gdn.module.causal_conv1d_update is gdn.own[UPDATE]
    layers.use_references(lambda result: 2 * result)
    for _ in range(2):
        found = call(gdn.module.causal_conv1d_update, UPDATE, clones(given))
        assert torch.equal(found, 2 * expected)
    assert calls == []


def test_calls_are_kept_and_held_against_float64(gdn, log: Path, tmp_path: Path, caplog):
    kept = KeptCalls(tmp_path / "calls")
    live = LiveCheck([UPDATE], 1, "cpu")

    def forgetful(x: Tensor, conv_states: Tensor, *rest: Any) -> Tensor:
        y: Tensor = OPS[UPDATE].reference(x, conv_states.clone(), *rest)
        return y

    def wrap(op: Any, impl: Any, layer: Any, kernel: Any) -> Any:
        kernel = functools.wraps(kernel)(forgetful) if op.name == UPDATE else kernel
        return live.wrap(op, layer, kept.wrap(op, impl, layer, kernel))

    LayerHook(references()._resolutions, DispatchLog(log), wrap=wrap).replace_methods(gdn.backend)
    for name in gdn.names:
        call(getattr(gdn.module, name), name, given_of(name))
    contents = [torch.load(path, weights_only=True) for path in kept_files(tmp_path / "calls")]
    assert {(content["op"], content["layer"]) for content in contents} == {
        (FN, "GDNAttnBackend"),
        (UPDATE, "GDNAttnBackend"),
    }
    (line,) = [m for m in caplog.messages if "conv_states" in m]
    assert f"{UPDATE} in GDNAttnBackend" in line


@present(hasattr(GDNAttnBackend, "_convolve_prefill"), "method of its own for the convolution of prompts")
def test_sglangs_own_code_finds_what_stands_in_its_module(gdn, calls: Calls, log: Path, monkeypatch):
    references(log).replace_methods(gdn.backend)
    linear = gdn.backend.linear_attn_backend
    prompts, step = given_of(FN), given_of(UPDATE)
    layer = SimpleNamespace(
        conv_weights=prompts["weight"], bias=prompts["bias"], activation="silu", layer_id=0, head_k_dim=1
    )
    monkeypatch.setattr(linear, "forward_metadata", metadata_of(prompts, step), raising=False)
    batch = SimpleNamespace(
        extend_prefix_lens=prompts["has_initial_state"].int(),
        extend_seq_lens_cpu=prompts["query_start_loc"].diff().tolist(),
    )
    expected = OPS[FN].reference(**clones(prompts))
    states = (prompts["conv_states"], prompts["cache_indices"])
    found = linear._convolve_prefill(layer, batch, prompts["x"].t(), *states)
    assert torch.equal(found, expected.t())

    expected = OPS[UPDATE].reference(**clones(step))
    cache = SimpleNamespace(conv=[step["conv_states"]], temporal=None)
    cache.replayssm_d = cache.replayssm_k = cache.replayssm_g = None
    layer.conv_weights, layer.bias = step["weight"], step["bias"]
    layer.A_log = layer.dt_bias = layer.num_v_heads = layer.head_v_dim = None
    linear.req_to_token_pool = SimpleNamespace(mamba2_layer_cache=lambda layer_id: cache)
    linear.kernel_dispatcher = SimpleNamespace(
        supports_packed_decode=True, packed_decode=lambda mixed_qkv, **given: mixed_qkv
    )
    monkeypatch.setattr(linear, "_track_mamba_state_decode", lambda *given: None, raising=False)
    assert torch.equal(linear.forward_decode(layer, batch, step["x"], None, None), expected)
    assert calls == []


def metadata_of(prompts: dict[str, Any], step: dict[str, Any]) -> SimpleNamespace:
    nothing = dict.fromkeys(("conv_block_table", "replayssm_write_pos", "replayssm_force_flush"))
    return SimpleNamespace(
        query_start_loc=prompts["query_start_loc"],
        mamba_cache_indices=step["conv_state_indices"],
        **nothing,
    )
