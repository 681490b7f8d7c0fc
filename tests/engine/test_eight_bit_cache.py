"""A KV cache in FP8 beside the attention of ours: what SGLang's pools have in it, and what attention reads.

A model's answers show little of a wrong scale, so attention itself is held against float64, from what lies
in the pool.
"""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from sglang.srt.layers.radix_attention import RadixAttention
from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool
from sglang.srt.model_executor.forward_batch_info import ForwardMode
from torch import Tensor

from sglang_fl.ops import OPS
from sglang_fl.sglang_adapter.releases import PLAIN_PREFILL
from tests.engine.judge import LIMIT, Bench, bench_in, compare
from tests.engine.mistaken_vendor import MISTAKES_IN_8_BIT
from tests.engine.models import BY_NAME, Family, make_model
from tests.engine.questions import answers_to, as_request, draw_prompts, engine_arguments
from tests.engine.release import RELEASE, present
from tests.programs import Run

pytestmark = [pytest.mark.timeout(400), present(RELEASE in PLAIN_PREFILL, "attention of ours")]

E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2
HEADS, KV_HEADS, SIZE = 4, 2, 16


def pool_of(dtype: torch.dtype) -> MHATokenToKVPool:
    return MHATokenToKVPool(
        size=40,
        page_size=1,
        dtype=dtype,
        head_num=KV_HEADS,
        head_dim=SIZE,
        layer_num=1,
        device="cpu",
        enable_memory_saver=False,
    )


def buffers(pool: MHATokenToKVPool) -> tuple[Tensor, Tensor]:
    return pool.get_key_buffer(0), pool.get_value_buffer(0)


def layer_of(**scales: Any) -> RadixAttention:
    layer = RadixAttention(HEADS, SIZE, SIZE**-0.5, KV_HEADS, layer_id=0)
    for name, value in scales.items():
        setattr(layer, name, value)
    return layer


@pytest.mark.parametrize(
    ("dtype", "scales"),
    [
        (torch.float32, (None, None)),
        (torch.bfloat16, (None, None)),
        (E4M3, (0.5, 4.0)),  # by which SGLang divides without rounding
        (E5M2, (2.0, 0.25)),
    ],
)
def test_the_op_writes_what_sglangs_pool_writes(dtype: torch.dtype, scales: tuple[Any, Any]):
    k, v = torch.randn(2, 7, KV_HEADS, SIZE)
    slots = torch.randperm(40)[:7]
    theirs, ours = pool_of(dtype), pool_of(dtype)
    theirs.set_kv_buffer(layer_of(), slots, k.clone(), v.clone(), *scales)
    given = dict(zip(("k_scale", "v_scale"), scales, strict=True)) if scales[0] else {}
    OPS["kv_cache_write"].reference(k, v, *buffers(ours), slots, **given)
    for one, other in zip(buffers(theirs), buffers(ours), strict=True):
        assert torch.equal(one.view(torch.uint8), other.view(torch.uint8))


class Attended:
    """Two sequences, one of them with a prefix, through the backend and a pool of SGLang's."""

    def __init__(self, dtype: torch.dtype, **scales: Any) -> None:
        from sglang_fl.sglang_adapter.attention.backend import PagedAttention

        self.draw = torch.Generator().manual_seed(0)
        self.layer, self.pool = layer_of(**scales), pool_of(dtype)
        self.table = torch.randperm(40, generator=self.draw)[:32].view(2, 16).to(torch.int32)
        runner = SimpleNamespace(
            model=torch.nn.ModuleList([self.layer]),
            token_to_kv_pool=self.pool,
            req_to_token_pool=SimpleNamespace(req_to_token=self.table),
            kv_cache_dtype=dtype,
        )
        self.backend = PagedAttention(runner)
        self.lengths = [0, 0]
        self.wanted: Tensor

    def step(self, *new: int) -> Tensor:
        """Return the results of so many new tokens of each; one of each is a step of decode."""
        is_decode = new == (1, 1)
        ends = [before + count for before, count in zip(self.lengths, new, strict=True)]
        batch = SimpleNamespace(
            forward_mode=ForwardMode.DECODE if is_decode else ForwardMode.EXTEND,
            req_pool_indices=torch.arange(2),
            seq_lens=torch.tensor(ends),
            extend_seq_lens=torch.tensor(new),
            extend_prefix_lens=torch.tensor(self.lengths),
            encoder_lens=None,
            out_cache_loc=torch.cat(
                [self.table[row, a:b] for row, (a, b) in enumerate(self._spans(ends))]
            ).long(),
        )
        q = torch.randn(sum(new), HEADS * SIZE, generator=self.draw)
        k, v = torch.randn(2, sum(new), KV_HEADS, SIZE, generator=self.draw)
        kept = k.clone(), v.clone()
        self.backend.init_forward_metadata(batch)
        run = self.backend.forward_decode if is_decode else self.backend.forward_extend
        out = run(q, k, v, self.layer, batch)
        assert torch.equal(k, kept[0])
        assert torch.equal(v, kept[1])
        self.wanted = self._exact(q.view(-1, HEADS, SIZE), k, v, ends, is_decode)
        self.lengths = ends
        return out.view(-1, HEADS, SIZE)

    def _spans(self, ends: list[int]) -> list[tuple[int, int]]:
        return list(zip(self.lengths, ends, strict=True))

    def _exact(self, q: Tensor, k: Tensor, v: Tensor, ends: list[int], is_decode: bool) -> Tensor:
        """Compute it in float64; of what is new the pool counts in decode alone."""
        found, first = [], 0
        scales = (self.layer.k_scale_float or 1.0, self.layer.v_scale_float or 1.0)
        for row, (begin, end) in enumerate(self._spans(ends)):
            stored = [
                pool[self.table[row, :end].long()].double() * scale
                for pool, scale in zip(buffers(self.pool), scales, strict=True)
            ]
            if not is_decode:
                for kept, given in zip(stored, (k, v), strict=True):
                    kept[begin:] = given[first : first + end - begin]
            keys, values = (x.repeat_interleave(HEADS // KV_HEADS, 1) for x in stored)
            for place in range(begin, end):
                scores = torch.einsum("hd,nhd->hn", q[first].double(), keys[: place + 1]) * SIZE**-0.5
                found.append(torch.einsum("hn,nhd->hd", scores.softmax(-1), values[: place + 1]))
                first += 1
        return torch.stack(found)


STEPS = [(9, 4), (3, 5), (1, 1)]
SCALES = {
    "k_scale": torch.tensor(0.3),
    "v_scale": torch.tensor(2.5),
    "k_scale_float": 0.3,
    "v_scale_float": 2.5,
}


@pytest.mark.parametrize("dtype", [E4M3, E5M2], ids=str)
@pytest.mark.parametrize("scales", [{}, SCALES], ids=["no-scales", "scales"])
def test_prompts_prefixes_and_decode_are_those_of_the_pool(dtype: torch.dtype, scales: dict[str, Any]):
    attended = Attended(dtype, **scales)
    for new in STEPS:
        torch.testing.assert_close(attended.step(*new).double(), attended.wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("mistake", MISTAKES_IN_8_BIT)
@pytest.mark.parametrize("method", ["decode", "extend", "write"])
def test_a_wrong_scale_is_no_rounding(method: str, mistake: str):
    wrong, right = Attended(E4M3, **SCALES), Attended(E4M3, **SCALES)
    kernels = wrong.backend.kernels
    own, name = getattr(kernels, method), {"k": "k_scale", "v": "v_scale"}[mistake[0]]
    setattr(kernels, method, lambda *tensors, **options: own(*tensors, **{**options, name: 1.0}))
    found, wanted = ([attended.step(*new) for new in STEPS] for attended in (wrong, right))
    off = [float((one - other).abs().max()) for one, other in zip(found, wanted, strict=True)]
    assert off[0] == 0.0  # nothing is read of the pool
    assert [difference > 0.05 for difference in off[1:]] == [method != "decode", method != "extend"]


def test_a_scale_that_a_file_brought_stands_in_one_place():
    from sglang_fl.sglang_adapter.attention.eight_bit import scales_of

    pools = buffers(pool_of(E4M3))
    assert scales_of(layer_of(k_scale=0.5, v_scale=0.25), pools) == {"k_scale": 0.5, "v_scale": 0.25}
    assert scales_of(layer_of(), pools) == {"k_scale": 1.0, "v_scale": 1.0}
    assert scales_of(layer_of(k_scale=0.5, v_scale=0.5), buffers(pool_of(torch.bfloat16))) == {}
    latent = pools[0], pools[0][..., :8]
    assert scales_of(layer_of(k_scale=0.5, v_scale=0.5), latent) == {"k_scale": 1.0, "v_scale": 1.0}


FAMILY = BY_NAME["Qwen2-attention"]


class Served:
    """What an engine with such a cache has answered, and said."""

    def __init__(
        self, run: Run, log: list[str], model: Any, prompts: list[Any], followers: list[Any]
    ) -> None:
        self.log, self.answers = log, run.result
        self.prompts = compare(model, prompts, run.result["prompts"])
        self.followers = compare(model, followers, run.result["followers"])
        self.wrong = [line for line in run.output.splitlines() if " units of " in line]
        self.unchecked = [line for line in run.output.splitlines() if "cannot be checked" in line]


def serve(bench: Bench, folder: Path, mistakes: list[str], family: Family = FAMILY, **engine: Any) -> Served:
    model = make_model(family, folder / "model")
    scales = {"0": {str(layer): 0.05 * (layer + 1) for layer in range(3)}}
    cache = {"dtype": "float8_e4m3fn", "scaling_factor": scales}
    (folder / "scales.json").write_text(json.dumps({"model_type": "qwen2", "kv_cache": cache}))
    prompts, followers = draw_prompts(family, folder / "model")
    questions = {
        "engine": engine_arguments(folder / "model", **{**family.engine, **engine}),
        "prompts": as_request(prompts),
        "followers": as_request(followers),
        "mistaken": as_request(prompts[:2]),
        "mistakes": mistakes,
        "planted": str(bench.planted),
    }
    run = answers_to(questions, folder, bench.environment)
    return Served(run, bench.log.read_text().splitlines(), model, prompts, followers)


@pytest.fixture
def bench(tmp_path: Path, environment_of) -> Bench:
    return bench_in(tmp_path, environment_of, SGLANG_FL_VERIFY="attention", SGLANG_FL_VERIFY_RATE="1")


@pytest.mark.parametrize("dtype", ["fp8_e4m3", "fp8_e5m2"])
def test_an_engine_reads_what_it_has_written(dtype: str, bench: Bench, tmp_path: Path):
    scales = {"quantization_param_path": str(tmp_path / "scales.json")} if dtype == "fp8_e4m3" else {}
    served = serve(bench, tmp_path, [], kv_cache_dtype=dtype, **scales)
    assert (served.wrong, served.unchecked) == ([], [])
    assert {line for line in served.log if "Attention" in line} == {
        f"[OOT-DISPATCH] AttentionKernels.{method} → vendor(vendor.mistaken)"
        for method in ("decode", "extend", "write")
    }
    assert min(row["cached_tokens"] for row in served.answers["followers"]) >= 30
    assert served.prompts.prefill < LIMIT  # a prompt attends to its own keys, which are not in 8 bit
    assert LIMIT < served.prompts.decode < 0.5
    assert LIMIT < served.followers.prefill < 0.5


def test_an_engine_reads_latents_as_the_model_has_written_them(bench: Bench, tmp_path: Path):
    served = serve(bench, tmp_path, [], BY_NAME["DeepSeek-V2-Lite"], kv_cache_dtype="fp8_e4m3")
    assert (served.wrong, served.unchecked) == ([], [])
    assert served.prompts.prefill < LIMIT < served.prompts.decode  # in which other experts are chosen


def test_a_wrong_scale_in_an_engine_is_told(bench: Bench, tmp_path: Path):
    mistakes = ["decode_attention.keys_scale_forgotten", "kv_cache_write.values_scale_forgotten"]
    scales = {"quantization_param_path": str(tmp_path / "scales.json")}
    served = serve(bench, tmp_path, mistakes, kv_cache_dtype="fp8_e4m3", **scales)
    said = "\n".join(served.wrong)
    for layer in range(3):
        where = f"model.layers.{layer}.self_attn.attn by the attention backend sglang_fl"
        assert f"decode_attention in {where}: result 0: " in said
        assert f"extend_attention in {where}: the pool has other values than those of the call" in said
