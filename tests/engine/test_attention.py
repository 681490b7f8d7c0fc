"""The attention backend ``sglang_fl`` around its kernels: what it refuses and leaves, and its lists."""

import contextlib
import dataclasses
import functools
import inspect
import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from packaging.version import Version
from sglang.srt import platforms
from sglang.srt.layers.attention.attention_registry import ATTENTION_BACKENDS
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from sglang.srt.platforms.interface import SRTPlatform
from sglang.srt.plugins import load_plugins
from sglang.srt.server_args import ATTENTION_BACKEND_CHOICES

from sglang_fl.errors import ContractError, SettingsError, UnsupportedError
from sglang_fl.logs.dispatch_log import DispatchLog
from sglang_fl.ops import OPS
from sglang_fl.sglang_adapter import seams
from sglang_fl.sglang_adapter.attention import limits, offer
from sglang_fl.sglang_adapter.attention.kernels import AttentionKernels
from sglang_fl.sglang_adapter.attention.limits import needs_of, why_not
from sglang_fl.sglang_adapter.attention.slots import SlotLists, bounds_of, masks_of_trees
from sglang_fl.sglang_adapter.hook import LayerHook
from sglang_fl.sglang_adapter.layers.attention import ADAPTERS
from sglang_fl.sglang_adapter.methods import methods_of
from sglang_fl.sglang_adapter.releases import PLAIN_PREFILL, newest
from sglang_fl.sglang_adapter.switchable_layers import SwitchableLayers
from sglang_fl.startup import configure
from sglang_fl.vendor import BackendKind, OpImpl
from tests.engine.release import RELEASE, present

pytestmark = pytest.mark.timeout(300)

on_releases_with_it = present(RELEASE in PLAIN_PREFILL, "attention of ours")
METHODS = ["AttentionKernels.decode", "AttentionKernels.extend", "AttentionKernels.write"]


@pytest.fixture
def engine(run_offline, tmp_path) -> Any:
    """Return a function that serves the tiny model by the backend; it returns the result and the log."""
    log = tmp_path / "dispatch.log"

    def run(**settings: str) -> tuple[Any, list[str]]:
        log.write_text("")
        done = run_offline(
            {"SGLANG_FL_DISPATCH_LOG": str(log), **settings},
            attention_backend="sglang_fl",
            dtype="float32",
        )
        return done, log.read_text().splitlines()

    return run


@on_releases_with_it
def test_with_layer_2_off_it_computes_by_its_own_references_and_logs_nothing(engine):
    on, lines = engine()
    assert on.code == 0, on.output[-3000:]
    assert [line for line in lines if "Attention" in line] == [
        f"[OOT-DISPATCH] AttentionKernels.{method} → reference(reference)"
        for method in ("write", "extend", "decode")
    ]
    off, lines = engine(SGLANG_FL_OOT_ENABLED="0")
    assert off.code == 0, off.output[-3000:]
    assert lines == []
    assert off.result["tokens"] == on.result["tokens"]
    assert off.result["logprobs"] == pytest.approx(on.result["logprobs"], abs=1e-4)


def test_a_name_is_offered_once_in_each_process():
    load_plugins()
    offer.offer(RELEASE, guard=contextlib.nullcontext)
    assert ATTENTION_BACKEND_CHOICES.count("sglang_fl") == 1
    assert "sglang_fl" in ATTENTION_BACKENDS


@on_releases_with_it
@pytest.mark.parametrize(
    ("architecture", "counts_as"), [("GptOssForCausalLM", "triton"), ("Gemma4ForCausalLM", "sglang_fl")]
)
def test_a_list_of_names_is_passed_by_models_that_were_judged(architecture: str, counts_as: str):
    from sglang.srt.arg_groups import model_hook

    load_plugins()
    config = SimpleNamespace(
        attention_backend="sglang_fl",
        prefill_attention_backend=None,
        decode_attention_backend="fa3",
        _model_config=SimpleNamespace(hf_config=SimpleNamespace(architectures=[architecture])),
    )
    assert model_hook.attention_backends_of(config) == (counts_as, "fa3")


def test_an_earlier_release_is_refused_by_name():
    with pytest.raises(SettingsError, match=r"--attention-backend sglang_fl needs SGLang 0\.5\.22 or later"):
        offer._create(None, Version("0.5.21"))


@pytest.fixture
def on_the_newest_release(monkeypatch: pytest.MonkeyPatch) -> None:
    """What older releases do not have is refused there with another reason."""
    monkeypatch.setattr(limits, "installed_version", newest)


def layer(**given: Any) -> RadixAttention:
    made = RadixAttention(4, 16, 0.25, 2, layer_id=0)
    for name, value in given.items():
        assert hasattr(made, name)
        setattr(made, name, value)
    return made


def encoder_decoder(architecture: str) -> SimpleNamespace:
    return SimpleNamespace(is_encoder_decoder=True, hf_config=SimpleNamespace(architectures=[architecture]))


def runner(*layers: RadixAttention, **given: Any) -> SimpleNamespace:
    usual = {
        "token_to_kv_pool": SimpleNamespace(page_size=1),
        "model_config": SimpleNamespace(is_encoder_decoder=False),
        "server_args": SimpleNamespace(speculative_algorithm=None, kv_cache_dtype="auto"),
        "kv_cache_dtype": torch.bfloat16,
    }
    return SimpleNamespace(model=torch.nn.ModuleList(layers), **{**usual, **given})


@pytest.mark.usefixtures("on_the_newest_release")
@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({}, None),
        ({"token_to_kv_pool": SimpleNamespace(use_dsa=True)}, "sparse attention (DSA)"),
        ({"model_config": encoder_decoder("WhisperForConditionalGeneration")}, None),
        (
            {"model_config": encoder_decoder("MossVLForConditionalGeneration")},
            "the encoder and decoder of MossVLForConditionalGeneration",
        ),
        (
            {
                "model_config": encoder_decoder("WhisperForConditionalGeneration"),
                "token_to_kv_pool": SimpleNamespace(page_size=16),
            },
            "--page-size 16 beside an encoder, of whose tokens SGLang takes no account there",
        ),
        ({"kv_cache_dtype": torch.float8_e4m3fn}, None),
        ({"kv_cache_dtype": torch.float8_e5m2}, None),
        ({"kv_cache_dtype": torch.float4_e2m1fn_x2}, "a KV cache in float4_e2m1fn_x2"),
        (
            {
                "kv_cache_dtype": torch.float8_e4m3fn,
                "server_args": SimpleNamespace(speculative_algorithm=None, kv_cache_dtype="mxfp8"),
            },
            "a KV cache in mxfp8",
        ),
    ],
)
def test_what_it_cannot_serve_is_refused_when_it_is_built(given: dict[str, Any], reason: str | None):
    assert why_not(runner(layer(), **given)) == reason


def test_drafts_are_checked_on_platforms_of_ours_alone(monkeypatch):
    speculating = runner(
        layer(), server_args=SimpleNamespace(speculative_algorithm="NGRAM", kv_cache_dtype="auto")
    )
    assert why_not(speculating) is None
    in_chunks = runner(layer(use_irope=True), server_args=speculating.server_args)
    assert why_not(in_chunks) == "speculative decoding with attention in chunks (Llama 4)"
    monkeypatch.setattr(platforms, "current_platform", SRTPlatform())
    assert why_not(speculating) == "speculative decoding where SGLang has a platform itself"
    assert why_not(runner(layer())) is None


@pytest.mark.usefixtures("on_the_newest_release")
@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"attn_type": AttentionType.ENCODER_ONLY, "sliding_window_size": 8, "logit_cap": 30.0}, None),
        ({"logit_cap": None}, None),
        ({"is_cross_attention": True}, None),
        ({"attn_type": AttentionType.DECODER_BIDIRECTIONAL}, "attention of the type decoder_bidirectional"),
        ({"logit_cap": 30.0, "logit_capping_method": "hard"}, "scores that are capped by hard"),
        ({"xai_temperature_len": 1024}, None),
        (
            {"xai_temperature_len": 1024, "sliding_window_size": 8},
            "a temperature by position (Grok) in a window, in chunks or across",
        ),
        ({"use_irope": True}, None),
        ({"use_irope": True, "sliding_window_size": 8}, "attention in chunks and in a window at once"),
    ],
)
def test_one_layer_that_it_cannot_compute_is_enough(given: dict[str, Any], reason: str | None):
    assert why_not(runner(layer(), layer(**given))) == reason


def test_options_that_the_layers_need_are_known_beforehand():
    layers = [layer(), layer(logit_cap=30.0), layer(sliding_window_size=8), layer(xai_temperature_len=9)]
    assert needs_of(layers[:1]) == set()
    assert needs_of(layers) == {"logit_cap", "sliding_window", "temperature_len"}


def test_lists_hold_the_last_slots_of_each_sequence():
    table = torch.arange(100, dtype=torch.int32).view(5, 20)
    lists = SlotLists(table, torch.tensor([3, 1, 2]), torch.tensor([4, 0, 2]), lambda slots: slots + 1000)
    bounds, slots = lists.last(None, is_window_pool=False)
    assert bounds.tolist() == [0, 4, 4, 6]
    assert slots.tolist() == [60, 61, 62, 63, 40, 41]
    bounds, slots = lists.last(3, is_window_pool=True)
    assert bounds.tolist() == [0, 3, 3, 5]
    assert slots.tolist() == [1061, 1062, 1063, 1040, 1041]
    assert lists.last(3, is_window_pool=True)[1] is slots
    assert bounds_of(torch.tensor([], dtype=torch.int32)).tolist() == [0]


def test_masks_of_drafts_have_no_columns_for_the_prefix():
    trees = torch.tensor([[[1, 0], [1, 1]], [[1, 0], [0, 1]]], dtype=torch.bool)
    # The columns of the prefixes, of 3 tokens and of none, must not be read.
    padded = (torch.nn.functional.pad(tree, (n, 0)) for tree, n in zip(trees, (3, 0), strict=True))
    whole = torch.cat([mask.flatten() for mask in padded])
    options = masks_of_trees(whole, torch.tensor([3, 0]), drafts=2)
    assert torch.equal(options["custom_mask"], trees.flatten())
    assert options["mask_indptr"].tolist() == [0, 4, 8]


@on_releases_with_it
def test_each_step_of_a_draft_model_reads_and_writes_slots_of_its_own_in_the_pool_for_windows():
    from sglang_fl.sglang_adapter.attention.backend import PagedAttention

    backend = object.__new__(PagedAttention)
    backend._layers_in_window_pool = frozenset({0})
    backend.token_to_kv_pool = SimpleNamespace(translate_loc_from_full_to_swa=lambda slots: slots + 1000)
    backend.req_to_token_pool = SimpleNamespace(req_to_token=torch.arange(40, dtype=torch.int32).view(2, 20))
    batch = SimpleNamespace(
        batch_size=1,
        req_pool_indices=torch.tensor([1]),
        seq_lens=torch.tensor([5]),
        out_cache_loc=torch.arange(25, 31),  # two branches of three drafts behind five tokens
    )
    backend.init_draft_step(batch, step=1, branches=2, steps=3)
    assert backend._window_loc.tolist() == [1026, 1029]
    bounds, slots = backend.forward_metadata.last(3, is_window_pool=True)
    assert bounds.tolist() == [0, 3, 6]
    assert slots.tolist() == [1024, 1025, 1026, 1024, 1028, 1029]


def test_kernels_are_found_in_backends_of_backends():
    def backend(**parts: Any) -> SimpleNamespace:
        return SimpleNamespace(**parts)

    one, two = (backend(kernels=AttentionKernels()) for _ in range(2))
    hybrid = backend(prefill_backend=one, decode_backend=two)
    for whole in (hybrid, backend(full_attn_backend=hybrid), backend(primary=one, children=[one, two])):
        assert [method.title for method in methods_of(whole)] == METHODS * 2
    assert list(methods_of(None)) == []


def call(seed: int = 0, **options: Any) -> dict[str, Any]:
    case = next(case for case in OPS["decode_attention"].cases if case.name == "mixed-lengths")
    return {**case.arguments(torch.float32, seed=seed), **options}


def run(method: Any, arguments: dict[str, Any]) -> torch.Tensor:
    """Call it as the backend does: tensors by position, options by name."""
    given = dict(arguments)
    options = {name: given.pop(name) for name in OPS["decode_attention"].options if name in given}
    return method(*given.values(), **options)


class Kernels:
    """Two kernels, the first without an option; they count their calls."""

    def __init__(self, lacks: str) -> None:
        self.calls: list[str] = []
        self.poor, self.rich = self._kernel("poor", lacks), self._kernel("rich")

    def _kernel(self, name: str, *lacks: str) -> Any:
        reference = OPS["decode_attention"].reference

        @functools.wraps(reference)
        def kernel(*args: Any, **kwargs: Any) -> Any:
            assert not set(lacks) & set(kwargs)
            self.calls.append(name)
            return reference(*args, **kwargs)

        signature = inspect.signature(reference)
        kept = [p for p in signature.parameters.values() if p.name not in lacks]
        kernel.__signature__ = signature.replace(parameters=kept)
        return kernel


@pytest.fixture
def dispatched(monkeypatch, tmp_path) -> Any:
    """Return a function that lets layer 2 choose among ``Kernels``; it returns the object and the log."""
    log = tmp_path / "dispatch.log"

    def dispatch(kernels: Kernels, needs: set[str]) -> tuple[AttentionKernels, Any]:
        module = f"kernels_of_{tmp_path.name}"
        monkeypatch.setitem(sys.modules, module, SimpleNamespace(poor=kernels.poor, rich=kernels.rich))
        candidates = tuple(
            OpImpl("decode_attention", BackendKind.VENDOR, f"vendor.{name}", f"{module}:{name}")
            for name in ("poor", "rich")
        )
        resolutions = dict(configure().resolutions)
        resolutions["decode_attention"] = SimpleNamespace(
            **{**vars(resolutions["decode_attention"]), "candidates": candidates, "passed_over": ()}
        )
        found = AttentionKernels(needs)
        LayerHook(resolutions, DispatchLog(log)).replace_methods(SimpleNamespace(kernels=found))
        return found, lambda: log.read_text().splitlines()

    return dispatch


def test_a_kernel_without_an_option_that_the_model_needs_is_passed_over(dispatched):
    kernels = Kernels(lacks="logit_cap")
    found, log = dispatched(kernels, {"logit_cap"})
    for _ in range(2):
        run(found.decode, call(logit_cap=1.0))
    assert kernels.calls == ["rich", "rich"]
    assert log() == ["[OOT-DISPATCH] AttentionKernels.decode → vendor(vendor.rich)"]


def test_a_call_with_an_option_that_the_kernel_lacks_is_the_references(dispatched):
    kernels = Kernels(lacks="sinks")
    found, log = dispatched(kernels, set())
    run(found.decode, call())
    sinks = torch.linspace(-1, 1, 4)
    result = run(found.decode, call(sinks=sinks))
    assert torch.equal(result, OPS["decode_attention"].reference(**call(sinks=sinks)))
    run(found.decode, call())
    assert kernels.calls == ["poor", "poor"]
    assert log() == [
        "[OOT-DISPATCH] AttentionKernels.decode → vendor(vendor.poor)",
        "[OOT-DISPATCH] AttentionKernels.decode → reference(reference)",
    ]


@pytest.mark.parametrize("is_asked", [True, False], ids=["asked-for", "no-default"])
def test_an_op_that_is_left_to_sglang_is_the_references_where_sglang_has_none(is_asked: bool, log, caplog):
    """Whoever asked for SGLang's path is told; a package that has no default for the op asked for nothing."""
    reason = "asked for by SGLANG_FL_PER_OP" if is_asked else "flagos is no default here: not measured"
    first = dataclasses.replace(
        configure().resolutions["decode_attention"], sglang_first=reason, then_sglang=is_asked
    )
    found = AttentionKernels()
    hook = LayerHook({**configure().resolutions, "decode_attention": first}, DispatchLog(log))
    hook.replace_methods(SimpleNamespace(kernels=found))
    for _ in range(2):
        assert torch.equal(run(found.decode, call()), OPS["decode_attention"].reference(**call()))
    assert log.read_text().splitlines() == ["[OOT-DISPATCH] AttentionKernels.decode → reference(reference)"]
    warnings = [record.message for record in caplog.records if record.levelname == "WARNING"]
    told = f"AttentionKernels.decode: SGLang has none, reference(reference) runs: decode_attention: {reason}"
    assert warnings == [told] * is_asked


def test_calls_that_the_contract_excludes_stay_an_error_and_decide_nothing(dispatched):
    kernels = Kernels(lacks="sinks")
    found, log = dispatched(kernels, set())
    wrong = call()
    wrong["kv_indptr"] = wrong["kv_indptr"][1:]
    with pytest.raises(ContractError, match="not one bound more than the 5 sequences"):
        run(found.decode, wrong)
    assert kernels.calls == []
    run(found.decode, call())
    with pytest.raises(ContractError, match="not one bound more than the 5 sequences"):
        run(found.decode, wrong)
    assert log() == ["[OOT-DISPATCH] AttentionKernels.decode → vendor(vendor.poor)"]


def test_bisect_can_switch_each_of_the_two():
    hooks = (LayerHook(configure().resolutions, DispatchLog(None)) for _ in range(2))
    layers = SwitchableLayers(*hooks, seams.seam_of(seams.installed_version()))
    found = AttentionKernels()
    own = found.decode
    layers.find(torch.nn.Module(), SimpleNamespace(kernels=found))
    assert layers.ops == {adapter.op.name: [title] for adapter, title in zip(ADAPTERS, METHODS, strict=True)}
    layers.switch(["decode_attention"])
    assert found.decode != own
    assert torch.equal(run(found.decode, call()), OPS["decode_attention"].reference(**call()))
    layers.switch([])
    assert found.decode == own


def extend_beside_latents(prefix: int) -> tuple[dict[str, Any], Any]:
    """Let a layer with keys of each head attend to 6 new tokens; its pool has latents.

    Returns
    -------
    the arguments that the op got, and the result
    """
    from sglang_fl.sglang_adapter.attention.backend import PagedAttention

    pool = torch.randn(32, 1, 80)
    kv_pool = SimpleNamespace(
        get_key_buffer=lambda layer_id: pool, get_value_buffer=lambda layer_id: pool[..., :64]
    )
    table = torch.arange(1, 21, dtype=torch.int32).view(2, 10)
    of_heads = RadixAttention(4, 48, 0.2, 4, layer_id=0, v_head_dim=24)
    backend = PagedAttention(
        runner(of_heads, token_to_kv_pool=kv_pool, req_to_token_pool=SimpleNamespace(req_to_token=table))
    )
    batch = SimpleNamespace(
        forward_mode=ForwardMode.EXTEND,
        extend_seq_lens=torch.tensor([2, 4], dtype=torch.int32),
        extend_prefix_lens=torch.tensor([0, prefix], dtype=torch.int32),
        req_pool_indices=torch.tensor([0, 1]),
        out_cache_loc=torch.arange(1, 7),
        encoder_lens=None,
    )
    backend.init_forward_metadata(batch)
    got: dict[str, Any] = {}
    op = OPS["extend_attention"]

    def spy(*tensors: Any, **options: Any) -> Any:
        got.update(op.signature.bind(*tensors, **options).arguments)
        return op.reference(*tensors, **options)

    backend.kernels.extend = spy
    product = torch.randn(6, 4, 32 + 24)
    q, k = torch.randn(6, 4, 48), torch.randn(6, 4, 48)
    out = backend.forward_extend(q, k, product[..., 32:], of_heads, batch, save_kv_cache=False)
    return got, out


@on_releases_with_it
def test_keys_and_values_of_each_head_stand_in_for_a_pool_of_latents():
    got, out = extend_beside_latents(prefix=0)
    assert got["k"].shape[1:] == got["k_buffer"].shape[1:] == (4, 48)
    assert got["v"].shape[1:] == got["v_buffer"].shape[1:] == (4, 24)
    assert got["v"].is_contiguous()
    assert len(got["kv_indices"]) == 0
    assert out.shape == (6, 4 * 24)


@on_releases_with_it
def test_a_prefix_of_latents_is_not_joined_to_keys_of_each_head():
    message = r"cannot join a prefix of latents to keys \(6, 4, 48\) and values \(6, 4, 24\) of each head"
    with pytest.raises(UnsupportedError, match=message):
        extend_beside_latents(prefix=3)


@on_releases_with_it
def test_what_a_model_passes_and_no_op_has_is_an_error():
    from sglang_fl.sglang_adapter.attention.backend import _options

    assert _options(layer(logit_cap=2.0), {"sinks": None}) == {"logit_cap": 2.0}
    with pytest.raises(UnsupportedError, match="cannot heed rel_bias, which the model passes"):
        _options(layer(), {"rel_bias": torch.zeros(1)})


@on_releases_with_it
def test_the_last_logits_are_capped_in_plain_pytorch_where_triton_cannot_run():
    from sglang_fl.platform import soft_cap_
    from sglang_fl.sglang_adapter.cpu_platform import CpuPlatform

    assert CpuPlatform().caps_logits
    logits = torch.tensor([-50.0, 0.0, 1.0])
    expected = 2.0 * torch.tanh(logits / 2.0)
    assert soft_cap_(logits, 2.0) is logits
    torch.testing.assert_close(logits, expected)
