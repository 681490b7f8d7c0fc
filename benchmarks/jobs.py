"""What ``bench_all`` runs: every benchmark that needs a GPU, as data."""

from dataclasses import dataclass

__all__ = ["ENGINES", "JOBS", "Job"]


@dataclass(frozen=True)
class Job:
    """One benchmark with one result file.

    Parameters
    ----------
    name : of the benchmark and its part, as ``--only`` and the log call it
    command : behind ``python``; ``{csv}`` stands for the result file, ``{logs}`` for a folder, ``{homes}``
        for one that all jobs of a card share
    result : name of that file; ``{where}`` stands for chip and release, ``h200_sglang-0.5.23``
    seconds : that it takes on an H200
    rank : jobs of a lower one are started first, the longest of a rank before shorter ones
    is_asked_for : it runs only where ``--only`` names it
    """

    name: str
    command: tuple[str, ...]
    result: str
    seconds: int
    rank: int = 1
    is_asked_for: bool = False

    @property
    def patience(self) -> int:
        """Seconds after which it is ended."""
        return 2 * self.seconds + 60


THREE = "vanilla,layer2,control"
#: With the side whose attention is SGLang's own.
FOUR = "vanilla,layer2,layer2:decode_attention=sglang;extend_attention=sglang,control"
#: With the side whose convolutions are ours.
CONVOLVED = "vanilla,layer2,layer2:causal_conv1d_fn=flagos;causal_conv1d_update=flagos,control"
#: Sides and seconds of each model that is served.
ENGINES = {
    "Qwen2.5-0.5B": (THREE, 160),
    "Llama-3-8B": (FOUR, 330),
    "Llama-3-8B-FP8": (THREE, 290),
    "Qwen3-8B": (THREE, 280),
    "Gemma-3-4B": (THREE, 300),
    "Qwen3-30B-A3B-24L": (THREE, 300),
    "DeepSeek-V2-Lite": (THREE, 300),
    "GLM-4.5-Air-8L": (THREE, 280),
    "Qwen3-Next-80B-A3B-24L-128E": (CONVOLVED, 330),
    "gpt-oss-20b-16L": (THREE, 290),
}
SMALL = "flagos,sglang,flag_gems,torch.compile,liger,copy"
BESIDE_SGLANG = "flagos,sglang,copy"
BESIDE_LIBRARIES = "flagos,sglang,fa3,flashinfer,copy"
#: Sides and seconds of each op of ``bench_ops``.
OPS = {
    "silu_and_mul": (SMALL, 80),
    "rms_norm": (SMALL, 80),
    "fused_add_rms_norm": (SMALL, 80),
    "rotary_embedding": (SMALL, 90),
    "layer_norm": (SMALL, 80),
    "routing": (BESIDE_SGLANG, 50),
    "qk_norm_rope": (BESIDE_SGLANG, 60),
    "rotary_embedding_with_cache": (BESIDE_SGLANG, 60),
    "fused_moe": (BESIDE_SGLANG, 180),
    "fused_recurrent_gated_delta_rule_packed_decode": (BESIDE_SGLANG, 50),
    "fused_sigmoid_gating_delta_rule_update": (BESIDE_SGLANG, 50),
    "causal_conv1d_update": (BESIDE_SGLANG, 50),
    "causal_conv1d_fn": (BESIDE_SGLANG, 50),
    "chunk_gated_delta_rule": (BESIDE_SGLANG, 60),
    "decode_attention": (BESIDE_LIBRARIES, 160),
    "extend_attention": (BESIDE_LIBRARIES, 120),
}


def _engine(model: str, sides: str, seconds: int) -> Job:
    words = (
        *("--model", model, "--sides", sides, "--rounds", "1", "--share", "0.3"),
        *("--logs", "{logs}", "--homes", "{homes}"),
    )
    return _job("bench_engine", model, words, seconds, rank=0)


def _op(op: str, sides: str, seconds: int) -> Job:
    return _job("bench_ops", op, ("--op", op, "--sides", sides), seconds)


def _job(
    module: str, part: str, words: tuple[str, ...], seconds: int, rank: int = 1, is_asked_for: bool = False
) -> Job:
    name = f"{module}_{part}" if part else module
    command = ("-m", f"benchmarks.{module}", *words, "--csv", "{csv}")
    result = f"{module}_{{where}}{f'_{part}' if part else ''}.csv"
    return Job(name, command, result, seconds, rank, is_asked_for)


JOBS = (
    *(_engine(model, *how) for model, how in ENGINES.items()),
    *(_op(op, *how) for op, how in OPS.items()),
    _job("bench_exactness", "", (), 200, rank=2),
    _job("bench_step", "", (), 90),
    # A table of the package, which decides what replaces an ATen op: it is renewed on purpose.
    _job("bench_aten", "", (), 900, is_asked_for=True),
)
