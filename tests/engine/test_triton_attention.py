"""SGLang's Triton attention backend around its kernels: which of its calls the two ops compute.

Its constructor needs a GPU, so objects are made without; all that runs here of SGLang is its own code.
"""

from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.layers.attention.triton_backend import TritonAttnBackend
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from torch import Tensor

from sglang_fl.dispatch.resolution import Resolution
from sglang_fl.logs.dispatch_log import DispatchLog
from sglang_fl.ops import OPS
from sglang_fl.ops.op import Arguments
from sglang_fl.sglang_adapter.hook import LayerHook
from sglang_fl.sglang_adapter.methods import methods_of
from sglang_fl.vendor import BackendKind, OpImpl
from tests.engine.dispatch_lines import told

DECODE, EXTEND = "decode_attention_fwd", "extend_attention_fwd"
WITHOUT_OUT = f"{__name__}:without_out"


def without_out(
    q: Tensor, k_buffer: Tensor, v_buffer: Tensor, kv_indptr: Tensor, kv_indices: Tensor, scale: float
) -> Any:
    """Decode by a kernel that has no option."""
    return OPS["decode_attention"].reference(q, k_buffer, v_buffer, kv_indptr, kv_indices, scale)


@pytest.fixture(autouse=True)
def no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def hook_of(log: Path, target: str | None = None, **facts: Any) -> LayerHook:
    resolutions = {
        name: Resolution(op, (OpImpl(name, BackendKind.FLAGOS, "flagos", target or op.target),), **facts)
        for name, op in OPS.items()
    }
    return LayerHook(resolutions, DispatchLog(log))


class Own:
    """Stands for one of SGLang's kernels: it keeps its calls, and leaves threes in the result."""

    def __init__(self, result: int) -> None:
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self._result = result

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        self.calls.append((args, kwargs))
        args[self._result].fill_(3)


def backend_of(given: Arguments, **facts: Any) -> TritonAttnBackend:
    """Make SGLang's object, about to compute what the arguments of an op say."""
    made = TritonAttnBackend.__new__(TritonAttnBackend)
    pools = SimpleNamespace(
        get_key_buffer=lambda layer_id: given["k_buffer"], get_value_buffer=lambda layer_id: given["v_buffer"]
    )
    metadata = {
        **dict.fromkeys(("attn_logits", "attn_lse", "num_kv_splits", "swa_attn_logits", "uneven_batch")),
        **dict.fromkeys(("lean_Mp", "lean_Lp", "lean_Op", "lean_locks", "custom_mask", "mask_indptr")),
        **dict.fromkeys(("swa_out_cache_loc", "window_kv_offsets", "max_extend_len")),
        "kv_indptr": given["kv_indptr"],
        "kv_indices": given["kv_indices"],
        "window_kv_indptr": given["kv_indptr"],
        "window_kv_indices": given["kv_indices"],
        "qo_indptr": given.get("qo_indptr"),
    }
    usual = {
        **dict.fromkeys(("is_draft_runner", "use_mla", "enable_lean_attention", "use_pdl"), False),
        **dict.fromkeys(("enable_deterministic", "use_dense_fp8_chunked_prefill"), False),
        **dict.fromkeys(("use_verify_shared_kv", "use_verify_splitkv"), False),
        "allow_bidirectional_attention_in_extend": False,
        "swa_v_head_dim": None,
        "dcp_size": 1,
        "max_kv_splits": 8,
        "page_size": 1,
        "token_to_kv_pool": pools,
        "forward_metadata": SimpleNamespace(**metadata),
        DECODE: Own(result=3),
        EXTEND: Own(result=3),
    }
    for name, value in (usual | facts).items():
        setattr(made, name, value)
    return made


def layer_of(given: Arguments, **facts: Any) -> RadixAttention:
    heads, keys = given["q"].shape[1:]
    kv_heads, values = given.get("v", given["v_buffer"]).shape[1:]
    layer = RadixAttention(heads, keys, given["scale"], kv_heads, layer_id=0, v_head_dim=values)
    layer.logit_cap = given.get("logit_cap", 0.0)
    layer.xai_temperature_len = given.get("temperature_len", -1)
    layer.sliding_window_size = given.get("sliding_window", -1)
    if not given.get("is_causal", True):
        layer.attn_type = AttentionType.ENCODER_ONLY
    if "k_scale" in given:
        layer.k_scale, layer.v_scale = (torch.tensor(given[name]) for name in ("k_scale", "v_scale"))
        layer.k_scale_float, layer.v_scale_float = given["k_scale"], given["v_scale"]
    for name, value in facts.items():
        assert hasattr(layer, name)
        setattr(layer, name, value)
    return layer


def step(backend: TritonAttnBackend, given: Arguments, layer: RadixAttention) -> Tensor:
    """Let SGLang's own code run a layer on keys and values that are in the pool."""
    is_decode = "k" not in given
    mode = ForwardMode.DECODE if is_decode else ForwardMode.EXTEND
    batch = SimpleNamespace(forward_mode=mode, mha_one_shot=False, extend_seq_lens_cpu=None, spec_info=None)
    run = backend.forward_decode if is_decode else backend.forward_extend
    q = given["q"].flatten(1)
    out = run(
        q,
        given.get("k"),
        given.get("v"),
        layer,
        batch,
        save_kv_cache=False,
        sinks=given.get("sinks"),
    )
    return out.view(len(q), layer.tp_q_head_num, -1)


def case(op: str, name: str) -> Arguments:
    return next(case for case in OPS[op].cases if case.name == name).arguments(torch.float32)


CASES = [
    *(
        ("decode_attention", name)
        for name in (
            *("mixed-lengths", "latent", "longer-list", "soft-cap", "temperature-behind-the-cap", "sinks"),
            *("scales", "e4m3", "e5m2"),
        )
    ),
    *(
        ("extend_attention", name)
        for name in (
            "prefixes",
            "latent",
            "not-causal",
            "window",
            "soft-cap",
            "temperature",
            "temperature-behind-the-cap",
            "sinks",
            "scales",
            "e4m3",
            "e5m2",
        )
    ),
]


@pytest.mark.parametrize(("op", "name"), CASES)
def test_calls_of_the_backend_are_the_ops(op: str, name: str, log: Path):
    given = case(op, name)
    backend, layer = backend_of(given), layer_of(given)
    own = getattr(backend, f"{op}_fwd")
    hook_of(log).replace_methods(backend)
    for _ in range(2):  # undecided, and bound
        torch.testing.assert_close(step(backend, given, layer), OPS[op].reference(**given))
    assert own.calls == []
    assert told(log) == [f"TritonAttnBackend.{op}_fwd → flagos(flagos)"]


def test_a_graphs_bounds_may_be_longer_than_the_batch(log: Path):
    given = case("decode_attention", "mixed-lengths")
    wanted = OPS["decode_attention"].reference(**given)
    given["kv_indptr"] = torch.cat([given["kv_indptr"], given["kv_indptr"]])
    backend = backend_of(given)
    hook_of(log).replace_methods(backend)
    torch.testing.assert_close(step(backend, given, layer_of(given)), wanted)


def test_keys_of_each_head_beside_a_pool_of_latents(log: Path):
    """As a model with latent attention passes them: without a prefix an op runs, with one SGLang's kernel."""
    given = case("extend_attention", "no-prefix")
    wanted = OPS["extend_attention"].reference(**given)
    pool = torch.randn(9, 1, 24)
    given |= {"k_buffer": pool, "v_buffer": pool[..., :16]}
    backend = backend_of(given)
    hook_of(log).replace_methods(backend)
    torch.testing.assert_close(step(backend, given, layer_of(given)), wanted)
    backend.forward_metadata.kv_indices = torch.arange(4)
    assert (step(backend, given, layer_of(given)) == 3).all()
    assert told(log) == [
        f"TritonAttnBackend.{EXTEND} → {what}" for what in ("flagos(flagos)", "sglang(native)")
    ]


def test_a_kernel_without_options_has_its_result_copied_and_lacks_a_cap(log: Path):
    given = case("decode_attention", "mixed-lengths")
    wanted = OPS["decode_attention"].reference(**given)
    backend = backend_of(given)
    hook_of(log, WITHOUT_OUT).replace_methods(backend)
    torch.testing.assert_close(step(backend, given, layer_of(given)), wanted)
    assert (step(backend, given, layer_of(given, logit_cap=2.0)) == 3).all()


@pytest.mark.parametrize("name", ["scales", "e4m3", "e5m2", "temperature"])
def test_a_kernel_without_scales_or_temperatures_leaves_such_calls_to_sglang(name: str, log: Path):
    given = case("decode_attention", name)
    backend = backend_of(given)
    hook_of(log, WITHOUT_OUT).replace_methods(backend)
    assert (step(backend, given, layer_of(given)) == 3).all()
    assert told(log) == [f"TritonAttnBackend.{DECODE} → sglang(native)"]


def test_latents_in_8_bit_need_no_scales_where_nothing_is_read_of_them(log: Path):
    given = case("extend_attention", "no-prefix")
    wanted = OPS["extend_attention"].reference(**given)
    pool = torch.randn(9, 1, 24).to(torch.float8_e4m3fn)
    given |= {"k_buffer": pool, "v_buffer": pool[..., :16], "k_scale": 0.5, "v_scale": 0.5}
    backend = backend_of(given)
    hook_of(log).replace_methods(backend)
    torch.testing.assert_close(step(backend, given, layer_of(given)), wanted)


def call_of(name: str, **changed: Any) -> tuple[list[Any], dict[str, Any]]:
    """Return a call of a kernel as the backend makes it, with some of its arguments changed."""
    op = name.removesuffix("_fwd")
    given = case(op, "one-token")
    backend = backend_of(given)
    step(backend, given, layer_of(given))
    ((args, kwargs),) = getattr(backend, name).calls
    names = POSITIONS[name]
    assert len(args) == len(names)
    places = {names.index(at): value for at, value in changed.items() if at in names}
    options = {at: value for at, value in changed.items() if at not in names}
    return [places.get(number, value) for number, value in enumerate(args)], kwargs | options


POSITIONS = {
    DECODE: (
        *("q", "k_buffer", "v_buffer", "o", "kv_indptr", "kv_indices", "attn_logits", "attn_lse"),
        *("num_kv_splits", "max_kv_splits", "sm_scale", "k_scale", "v_scale"),
    ),
    EXTEND: (
        *("q", "k", "v", "o", "k_buffer", "v_buffer", "qo_indptr", "kv_indptr", "kv_indices"),
        *("custom_mask", "is_causal", "mask_indptr", "max_len_extend", "k_scale", "v_scale", "sm_scale"),
    ),
}
EXCLUDED: list[tuple[str, dict[str, Any]]] = [
    (DECODE, {"score_mod": lambda scores: scores}),
    (DECODE, {"of_a_later_release": torch.ones(1)}),
    (DECODE, {"o": torch.empty(1, 4, 64, dtype=torch.float64)}),
    (EXTEND, {"custom_mask": torch.ones(1, dtype=torch.bool)}),
    (EXTEND, {"is_causal": False, "sliding_window_size": 3}),
    (EXTEND, {"lse_extend": torch.empty(1, 4)}),
    (EXTEND, {"skip_prefix": True}),
    (EXTEND, {"identity_kv_indices": True}),
]


@pytest.mark.parametrize(
    ("name", "changed"), EXCLUDED, ids=[f"{name}-{next(iter(c))}" for name, c in EXCLUDED]
)
def test_what_the_ops_cannot_express_is_sglangs_in_each_such_call(
    name: str, changed: dict[str, Any], log: Path
):
    backend = backend_of(case(name.removesuffix("_fwd"), "one-token"))
    own = getattr(backend, name)
    hook_of(log).replace_methods(backend)
    for number, given in enumerate((changed, {}, changed), 1):
        args, kwargs = call_of(name, **given)
        getattr(backend, name)(*args, **kwargs)
        assert bool((args[3] == 3).all()) == (number != 2)
    assert len(own.calls) == 2
    args, kwargs = own.calls[-1]
    wanted_args, wanted = call_of(name, **changed)
    assert [type(value) for value in args] == [type(value) for value in wanted_args]
    assert kwargs.keys() == wanted.keys()
    assert told(log) == [
        f"TritonAttnBackend.{name} → {what}" for what in ("sglang(native)", "flagos(flagos)")
    ]


@pytest.mark.parametrize("name", [DECODE, EXTEND])
def test_options_by_position_are_handed_on_as_they_are(name: str, log: Path):
    backend = backend_of(case(name.removesuffix("_fwd"), "one-token"))
    own = getattr(backend, name)
    hook_of(log).replace_methods(backend)
    args, kwargs = call_of(name)
    cap = kwargs.pop("logit_cap", 0.0)
    for more in ([cap], [], [cap]):
        getattr(backend, name)(*args, *more, **kwargs)
    assert [len(given) for given, _ in own.calls] == [len(args) + 1] * 2
    assert all(named.keys() == kwargs.keys() for _, named in own.calls)


def test_decode_of_a_part_of_the_context_is_sglangs_for_good(log: Path):
    backend = backend_of(case("decode_attention", "one-token"), dcp_size=2)
    own = backend.decode_attention_fwd
    hook_of(log).replace_methods(backend)
    args, kwargs = call_of(DECODE)
    backend.decode_attention_fwd(*args, **kwargs)
    assert backend.decode_attention_fwd is own
    assert told(log) == [f"TritonAttnBackend.{DECODE} → sglang(native)"]


@pytest.mark.parametrize("name", [DECODE, EXTEND])
def test_where_sglangs_kernel_comes_first_it_is_bound_again(name: str, log: Path):
    backend = backend_of(case(name.removesuffix("_fwd"), "one-token"))
    own = getattr(backend, name)
    hook_of(log, sglang_first="it is no default here").replace_methods(backend)
    args, kwargs = call_of(name)
    getattr(backend, name)(*args, **kwargs)
    assert getattr(backend, name) is own
    assert len(own.calls) == 1


def test_the_reference_never_takes_the_place_of_sglangs_kernel_unless_named(log: Path):
    backend = backend_of(case("decode_attention", "one-token"))
    reference = (
        OpImpl("decode_attention", BackendKind.REFERENCE, "reference", OPS["decode_attention"].target),
    )
    resolutions = {
        name: Resolution(op, reference, prefers_sglang=True) for name, op in OPS.items() if name in OP_NAMES
    }
    own = backend.decode_attention_fwd
    LayerHook(resolutions, DispatchLog(log)).replace_methods(backend)
    args, kwargs = call_of(DECODE)
    backend.decode_attention_fwd(*args, **kwargs)
    assert backend.decode_attention_fwd is own


OP_NAMES = ("decode_attention", "extend_attention")
HOLDERS: dict[str, Callable[[Any], Any]] = {
    "itself": lambda backend: backend,
    "hybrid": lambda backend: SimpleNamespace(full_attn_backend=backend),
    "prefill-and-decode": lambda backend: SimpleNamespace(prefill_backend=backend, decode_backend=backend),
    "two-batches": lambda backend: SimpleNamespace(primary=backend, children=[backend]),
}


@pytest.mark.parametrize("hold", HOLDERS.values(), ids=HOLDERS)
def test_a_backend_is_found_once_wherever_it_is_held(hold: Callable[[Any], Any]):
    backend = backend_of(case("decode_attention", "one-token"))
    found = [method for method in methods_of(hold(backend)) if method.kernel is backend]
    assert [method.title for method in found] == [f"TritonAttnBackend.{name}" for name in (DECODE, EXTEND)]
