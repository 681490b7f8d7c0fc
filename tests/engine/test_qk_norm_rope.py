"""Norms and rotation of an attention layer in one: where ours runs them, what is SGLang's."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.batch_invariant_ops import batch_invariant_ops
from sglang.srt.layers.layernorm import GemmaRMSNorm, RMSNorm
from sglang.srt.layers.rotary_embedding.base import LinearScalingRotaryEmbedding, RotaryEmbedding
from sglang.srt.layers.rotary_embedding.mrope import MRotaryEmbedding
from sglang.srt.models import glm4_moe, qwen3, qwen3_moe, utils

from sglang_fl.dispatch.life import is_ours
from sglang_fl.logs.dispatch_log import DispatchLog
from sglang_fl.ops import OPS, lacking
from sglang_fl.sglang_adapter import seams
from sglang_fl.sglang_adapter.hook import LayerHook
from sglang_fl.sglang_adapter.layer_lists import layer_lists
from sglang_fl.sglang_adapter.layers.qk_norm_rope import bind_qwen3, bind_qwen3_moe
from sglang_fl.sglang_adapter.switchable_layers import SwitchableLayers
from sglang_fl.startup import configure
from tests.engine.dispatch_lines import told

pytestmark = pytest.mark.usefixtures("plugin")

HEADS, KEY_HEADS, SIZE, HIDDEN = 4, 2, 64, 32
METHODS = {
    qwen3.Qwen3Attention: "forward",
    qwen3_moe.Qwen3MoeAttention: "apply_qk_norm_rope",
    glm4_moe.Glm4MoeAttention: "forward_prepare",
}


class Projection(torch.nn.Module):
    """Stands for a linear layer of SGLang, which returns a bias too."""

    def __init__(self, width: int, into: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(into, width) * width**-0.5)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        return x @ self.weight.T, None


class Attention(torch.nn.Module):
    """Stands for ``RadixAttention``: it returns what it is given, and remembers whether it was to save."""

    k_scale = v_scale = None
    layer_id = 0

    def forward(self, q: Any, k: Any, v: Any, forward_batch: Any, save_kv_cache: bool = True) -> Any:
        self.saves = save_kv_cache
        return torch.cat((q, k, v), dim=-1)


def attention_layer(cls: type, **changed: Any) -> torch.nn.Module:
    """Return such a layer without what its constructor asks of a server."""
    layer = cls.__new__(cls)
    torch.nn.Module.__init__(layer)
    sizes = HEADS * SIZE, KEY_HEADS * SIZE
    facts = {
        "q_norm": RMSNorm(SIZE),
        "k_norm": RMSNorm(SIZE),
        "rotary_emb": RotaryEmbedding(SIZE, SIZE, 128, 10000, True, torch.float32),
        "qkv_proj": Projection(HIDDEN, sizes[0] + 2 * sizes[1]),
        "o_proj": Projection(sizes[0] + 2 * sizes[1], HIDDEN),
        "attn": Attention(),
        **dict(zip(("q_size", "kv_size"), sizes, strict=True)),
        "head_dim": SIZE,
        "num_heads": HEADS,
        "num_kv_heads": KEY_HEADS,
        "alt_stream": None,
        **dict.fromkeys(("use_fused_qk_norm_rope", "use_fused_qk_norm_rope_cpu"), False),
        "use_fused_qk_norm_mrope": False,
        "use_qk_norm": True,
        "compatible_with_fused_kv_buffer": True,
        "_used_fused_qk_norm_rope_last_call": False,
        **changed,
    }
    for name, value in facts.items():
        setattr(layer, name, value)
    for norm in (layer.q_norm, layer.k_norm):
        norm.weight.data += 0.2 * torch.randn_like(norm.weight)
    return layer


def inputs(layer: torch.nn.Module, tokens: int = 3) -> tuple[Any, ...]:
    """Return arguments of the method that is replaced."""
    x, positions = torch.randn(tokens, HIDDEN), torch.arange(tokens)
    batch = SimpleNamespace(
        forward_mode=SimpleNamespace(is_decode=lambda: False), out_cache_loc=positions + 2
    )
    if isinstance(layer, qwen3_moe.Qwen3MoeAttention):
        return layer.qkv_proj(x)[0], positions, batch
    return positions, x, batch


def call(layer: torch.nn.Module, given: tuple[Any, ...]) -> tuple[torch.Tensor, ...]:
    result = getattr(layer, METHODS[type(layer)])(*(a.clone() if torch.is_tensor(a) else a for a in given))
    if isinstance(layer, glm4_moe.Glm4MoeAttention):
        result = result[2][:3]
    return (result,) if torch.is_tensor(result) else tuple(result)


@pytest.fixture(autouse=True)
def no_server(monkeypatch):
    """Answer what SGLang's own path asks of a server: nothing is fused, nothing is deterministic."""
    published = SimpleNamespace(deterministic=SimpleNamespace(rl_on_policy_target=None))
    for module in (qwen3, utils):
        for name in ("get_exec", "get_global_server_args", "get_server_args"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, lambda: published)
    for module in (utils, qwen3_moe):
        monkeypatch.setattr(module, "enable_fused_set_kv_buffer", lambda forward_batch: False)


@pytest.fixture
def take_over(log: Path, monkeypatch):
    """``take_over(layer, **settings)`` does what is done when a model has been loaded."""

    def take_over(layer: torch.nn.Module, orders: str = "qk_norm_rope=reference", **settings: str) -> None:
        for name, value in {"PER_OP": orders, **settings}.items():
            monkeypatch.setenv(f"SGLANG_FL_{name}", value)
        found = configure.__wrapped__()  # not what this process was configured with
        hook = LayerHook(found.resolutions, DispatchLog(log), layer_lists(found.settings))
        hook.replace_methods_of_model(torch.nn.ModuleList([layer]))

    return take_over


@pytest.mark.parametrize("cls", METHODS, ids=lambda cls: cls.__name__)
def test_ours_gives_what_sglangs_layers_give_and_the_log_names_the_method(cls: type, take_over, log: Path):
    layer = attention_layer(cls)
    given = inputs(layer)
    expected = call(layer, given)
    take_over(layer)
    for _ in range(2):  # the first call, and one that goes straight to the kernel
        for mine, theirs in zip(call(layer, given), expected, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)
    assert told(log) == [f"{cls.__name__}.{METHODS[cls]} → reference(reference)"]


@pytest.mark.parametrize("cls", METHODS, ids=lambda cls: cls.__name__)
def test_half_of_each_head_is_rotated_where_the_layer_says_so(cls: type, take_over):
    rotation = RotaryEmbedding(SIZE, SIZE // 2, 128, 10000, False, torch.float32)
    layer = attention_layer(cls, rotary_emb=rotation)
    given = inputs(layer)
    expected = call(layer, given)
    take_over(layer)
    for mine, theirs in zip(call(layer, given), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


def is_taken(layer: torch.nn.Module) -> bool:
    return is_ours(vars(layer).get(METHODS[type(layer)]))


def test_layers_stay_as_they_are_where_nobody_asks_for_the_reference(take_over, log: Path):
    layer = attention_layer(qwen3.Qwen3Attention)
    take_over(layer, orders="")
    assert not is_taken(layer)
    call(layer, inputs(layer))
    assert not any(line.startswith("Qwen3Attention") for line in told(log))


@pytest.mark.parametrize(
    "settings",
    [{"orders": "rms_norm=reference", "PREFER": "reference"}, {"orders": "", "OOT_BLACKLIST": "RMSNorm"}],
    ids=["an-order-for-a-part", "a-part-left-to-sglang"],
)
def test_a_part_that_the_user_names_stays_a_layer_of_its_own(settings: dict[str, str], take_over):
    layer = attention_layer(qwen3_moe.Qwen3MoeAttention)
    take_over(layer, **settings)
    assert not is_taken(layer)


def test_a_second_attention_backend_takes_nothing_twice(take_over, log: Path):
    layer = attention_layer(qwen3_moe.Qwen3MoeAttention)
    take_over(layer)
    first = vars(layer)["apply_qk_norm_rope"]
    take_over(layer)
    assert vars(layer)["apply_qk_norm_rope"] is first
    call(layer, inputs(layer))
    bound = vars(layer)["apply_qk_norm_rope"]
    take_over(layer)
    assert vars(layer)["apply_qk_norm_rope"] is bound is not first


LEFT = {
    "norms-that-cast": {"q_norm": RMSNorm(SIZE, cast_x_before_out_mul=True)},
    "norms-of-gemma": {"k_norm": GemmaRMSNorm(SIZE)},
    "two-epsilons": {"k_norm": RMSNorm(SIZE, eps=1e-3)},
    "three-axes": {
        "rotary_emb": MRotaryEmbedding(SIZE, SIZE, 128, 10000, True, torch.float32, mrope_section=[8, 12, 12])
    },
}


@pytest.mark.parametrize("changed", LEFT.values(), ids=LEFT)
@pytest.mark.parametrize("cls", METHODS, ids=lambda cls: cls.__name__)
def test_a_layer_that_the_contract_cannot_express_is_sglangs(cls: type, changed: dict[str, Any], take_over):
    layer = attention_layer(cls, **changed)
    take_over(layer)
    assert not is_taken(layer)


@pytest.mark.parametrize("name", ["use_fused_qk_norm_mrope", "use_fused_qk_norm_rope"])
def test_a_layer_that_runs_a_kernel_of_rocm_is_sglangs(name: str, take_over):
    layer = attention_layer(qwen3.Qwen3Attention, **{name: True})
    take_over(layer)
    assert not is_taken(layer)


def test_a_layer_without_norms_is_sglangs(take_over):
    layer = attention_layer(glm4_moe.Glm4MoeAttention, use_qk_norm=False)
    take_over(layer)
    assert not is_taken(layer)


def test_it_is_sglangs_in_batch_invariant_mode(take_over, monkeypatch):
    monkeypatch.setattr(batch_invariant_ops, "_batch_invariant_MODE", True)
    layer = attention_layer(qwen3.Qwen3Attention)
    take_over(layer)
    assert not is_taken(layer)


def test_a_rotation_that_only_changes_its_table_is_ours(take_over):
    scaled = LinearScalingRotaryEmbedding(SIZE, SIZE, 128, 10000, True, [2.0], torch.float32)
    layer = attention_layer(qwen3.Qwen3Attention, rotary_emb=scaled)
    take_over(layer)
    assert is_taken(layer)


@pytest.mark.parametrize("cls", METHODS, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("when", ["first", "later"])
def test_a_call_with_rows_picked_beforehand_is_sglangs(cls: type, when: str, take_over):
    layer = attention_layer(cls)
    given, rotation = inputs(layer), layer.rotary_emb
    picked = rotation.cos_sin_cache[torch.arange(3) + 40]
    rotation.sin_cos_cache = picked
    expected = call(layer, given)
    del rotation.sin_cos_cache
    take_over(layer)
    if when == "later":
        call(layer, given)
    rotation.sin_cos_cache = picked
    for _ in range(2):
        assert all(map(torch.equal, call(layer, given), expected))
    del rotation.sin_cos_cache
    assert not torch.equal(call(layer, given)[0], expected[0])


def set_epsilons(layer: torch.nn.Module, *values: float) -> None:
    layer.q_norm.variance_epsilon, layer.k_norm.variance_epsilon = values


#: What may become of the parts of a layer after its first call, and whether it is ours all the same.
CHANGES = {
    "epsilons": (True, lambda layer: set_epsilons(layer, 0.5, 0.5)),
    "two-epsilons": (False, lambda layer: set_epsilons(layer, 0.5, 0.1)),
    "part-of-a-row": (False, lambda layer: setattr(layer.q_norm, "variance_size_override", 8)),
    "norm-of-gemma": (False, lambda layer: setattr(layer, "q_norm", GemmaRMSNorm(SIZE))),
    "pairs": (True, lambda layer: setattr(layer.rotary_emb, "is_neox_style", False)),
    "another-rotation": (
        True,
        lambda layer: setattr(layer, "rotary_emb", RotaryEmbedding(SIZE, 32, 128, 99, True, torch.float32)),
    ),
}


@pytest.mark.parametrize(("is_ours_still", "change"), CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize("cls", METHODS, ids=lambda cls: cls.__name__)
def test_a_layer_whose_parts_are_changed_computes_as_they_say(
    cls: type, is_ours_still: bool, change: Any, take_over, log: Path
):
    layer = attention_layer(cls)
    given = inputs(layer)
    own = getattr(layer, METHODS[cls])
    take_over(layer)
    before = call(layer, given)
    change(layer)
    mine = call(layer, given)
    setattr(layer, METHODS[cls], own)
    for got, expected in zip(mine, call(layer, given), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5)
    assert not all(map(torch.equal, before, mine))
    left = [line for line in told(log) if line.startswith(cls.__name__) and line.endswith("sglang(native)")]
    assert bool(left) != is_ours_still


@pytest.mark.parametrize("name", ["q_norm", "k_norm", "rotary_emb"])
@pytest.mark.parametrize("how", ["hook", "pre-hook", "forward"])
@pytest.mark.parametrize("cls", METHODS, ids=lambda cls: cls.__name__)
def test_who_listens_to_a_part_hears_it_before_and_after_the_first_call(
    cls: type, how: str, name: str, take_over
):
    layer = attention_layer(cls)
    part, given, heard = getattr(layer, name), inputs(layer), []
    forward = part.forward

    def listen() -> Any:
        if how == "hook":
            return part.register_forward_hook(lambda *_: heard.append(how))
        if how == "pre-hook":
            return part.register_forward_pre_hook(lambda *_: heard.append(how))
        part.forward = lambda *args, **more: heard.append(how) or forward(*args, **more)
        return SimpleNamespace(remove=lambda: vars(part).pop("forward"))

    handle = listen()
    take_over(layer)
    assert not is_taken(layer)
    call(layer, given)
    handle.remove()
    take_over(layer)
    call(layer, given)
    assert (len(heard), is_taken(layer)) == (1, True)
    handle = listen()
    call(layer, given)
    handle.remove()
    call(layer, given)
    assert len(heard) == 2


@pytest.mark.parametrize("cls", METHODS, ids=lambda cls: cls.__name__)
def test_a_call_that_torch_compile_traces_is_sglangs(cls: type, take_over, log: Path, monkeypatch):
    layer = attention_layer(cls)
    given = inputs(layer)
    expected = call(layer, given)
    take_over(layer)
    with monkeypatch.context() as patched:
        patched.setattr(torch.compiler, "is_compiling", lambda: True)
        assert all(map(torch.equal, call(layer, given), expected))
    assert f"{cls.__name__}.{METHODS[cls]} → sglang(native)" in told(log)


def test_a_prompt_of_no_tokens_is_no_call_for_glm4(take_over):
    layer = attention_layer(glm4_moe.Glm4MoeAttention)
    take_over(layer)
    positions, x, batch = inputs(layer, tokens=0)
    assert layer.forward_prepare(positions, x, batch) == (x, batch, None)


class Pool:
    """Stands for SGLang's pool of keys and values."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        self.pools = [torch.zeros(9, KEY_HEADS, SIZE, dtype=dtype) for _ in range(2)]

    def get_key_buffer(self, layer_id: int) -> torch.Tensor:
        return self.pools[0]

    def get_value_buffer(self, layer_id: int) -> torch.Tensor:
        return self.pools[1]


def test_bisect_can_switch_each_layer_by_its_name(monkeypatch):
    monkeypatch.setenv("SGLANG_FL_PER_OP", "qk_norm_rope=reference")
    resolutions = configure.__wrapped__().resolutions  # not what this process was configured with
    hooks = (LayerHook(resolutions, DispatchLog(None)) for _ in range(2))
    layers = SwitchableLayers(*hooks, seams.seam_of(seams.installed_version()))
    model = torch.nn.Module()
    model.layers = torch.nn.ModuleList(attention_layer(cls) for cls in (qwen3.Qwen3Attention,) * 2)
    layers.find(model)
    assert layers.ops["qk_norm_rope"] == ["layers.0.forward", "layers.1.forward"]
    layers.switch(["qk_norm_rope"], ["layers.1.forward"])
    assert [is_ours(layer.forward) for layer in model.layers] == [False, True]


@pytest.fixture
def pool(monkeypatch) -> Pool:
    """A pool that SGLang lets a rotation write."""
    made = Pool()
    monkeypatch.setattr(utils, "get_token_to_kv_pool", lambda: made)
    for module in (utils, qwen3_moe):
        monkeypatch.setattr(module, "enable_fused_set_kv_buffer", lambda forward_batch: True)
    return made


def saves(layer: torch.nn.Module, given: tuple[Any, ...]) -> bool:
    """Return whether attention is told to save keys and values after a call."""
    result = getattr(layer, METHODS[type(layer)])(*given)
    if isinstance(layer, qwen3_moe.Qwen3MoeAttention):
        layer.forward_core((None, given[2], (*result, given[2])))
    elif isinstance(layer, glm4_moe.Glm4MoeAttention):
        layer.forward_core(result)
    return layer.attn.saves


@pytest.mark.parametrize("cls", METHODS, ids=lambda cls: cls.__name__)
def test_what_the_kernel_has_written_attention_does_not_save_again(cls: type, take_over, pool: Pool):
    layer = attention_layer(cls)
    take_over(layer)
    for _ in range(2):
        given = inputs(layer)
        assert not saves(layer, given)
        slots = given[2].out_cache_loc
        assert all(int(rows.flatten(1).any(1).sum()) == 3 and rows[slots].any() for rows in pool.pools)


@pytest.mark.parametrize("cls", METHODS, ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("why", ["scales", "another-dtype"])
def test_where_the_kernel_cannot_write_attention_saves(cls: type, why: str, take_over, pool: Pool):
    layer = attention_layer(cls)
    if why == "scales":
        layer.attn.k_scale = 2.0
    else:
        pool.pools = Pool(torch.bfloat16).pools
    take_over(layer)
    assert [saves(layer, inputs(layer)) for _ in range(2)] == [True, True]
    assert not any(rows.any() for rows in pool.pools)


@pytest.mark.parametrize("bind", [bind_qwen3, bind_qwen3_moe])
def test_a_kernel_without_the_kv_cache_leaves_it_to_attention(bind, pool: Pool):
    cls = qwen3.Qwen3Attention if bind is bind_qwen3 else qwen3_moe.Qwen3MoeAttention
    layer = attention_layer(cls)

    def kernel(query, key, q_weight, k_weight, eps, positions, cos_sin_cache, head_size, is_neox_style):
        facts = (q_weight, k_weight, eps, positions, cos_sin_cache, head_size, is_neox_style)
        return OPS["qk_norm_rope"].reference(query, key, *facts)

    assert lacking(kernel, ["value"])
    bound = bind(layer, kernel, None)
    setattr(layer, METHODS[cls], lambda *given: bound(layer, *given))
    assert saves(layer, inputs(layer))
    assert not any(rows.any() for rows in pool.pools)
