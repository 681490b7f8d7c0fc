"""Model families on an NVIDIA GPU beside vanilla SGLang: our kernels, their dispatch log, the same tokens.

With CUDA graphs, without them, and under ``torch.compile``.
"""

import functools
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from tests.engine.judge import expected_classes
from tests.engine.models import FAMILIES, Family, make_model
from tests.gpu.served import OURS, VANILLA, Answer, run

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(900)]

PROMPTS = [[3 + (7 * i + j * j) % 90 for j in range(length)] for i, length in enumerate((5, 40, 200, 331))]
#: Log-probabilities in nats: kernels round differently in bfloat16.
LIMIT = 0.15


@dataclass(frozen=True)
class Mode:
    """A way to run a family.

    Parameters
    ----------
    family : of ``tests/engine/models.py``
    name : for test ids
    engine : further arguments of ``sgl.Engine``
    orders : of ops, as ``SGLANG_FL_PER_OP`` has them
    sglang : what the dispatch log says that SGLang ran: layer class and the reason
    never_ours : layer classes that SGLang's own kernels run in every call
    """

    family: str
    name: str
    engine: dict[str, Any] = field(default_factory=dict)
    orders: str = ""
    sglang: tuple[tuple[str, str], ...] = ()
    never_ours: frozenset[str] = frozenset()

    def __str__(self) -> str:
        return f"{self.family}-{self.name}"


#: SGLang 0.5.17's own kernels refuse the small heads that a CPU may have, and with its Triton attention
#: Gemma 3's several heads of keys, which do not lie side by side.
SHAPE = {"head_dim": 64}
SHAPES = {"Gemma-3": {**SHAPE, "num_key_value_heads": 1}, "Qwen2-VL": {}}

MODES = (
    Mode("Qwen2", "graphs"),
    Mode("Qwen2", "no-graphs", {"disable_cuda_graph": True}),
    Mode(
        "Qwen2",
        "compiled",
        {"enable_torch_compile": True, "torch_compile_max_bs": 4},
        sglang=tuple(
            (name, "sglang(torch.compile)") for name in ("RMSNorm", "RotaryEmbedding", "SiluAndMul")
        ),
    ),
    Mode("Qwen3", "graphs"),
    Mode("Qwen3-MoE", "graphs"),
    # Its rotation writes the KV cache as well.
    Mode(
        "Qwen3-MoE",
        "layers",
        orders="qk_norm_rope=sglang",
        sglang=(("RMSNorm", "sglang(fused_qk_norm)"),),
    ),
    Mode(
        "Qwen3-MoE",
        "experts-of-sglang",
        orders="fused_moe=sglang",
        sglang=(("UnquantizedFusedMoEMethod", "sglang(native)"),),
        never_ours=frozenset({"UnquantizedFusedMoEMethod"}),
    ),
    Mode("Gemma-3", "graphs"),
    Mode("Qwen2-VL", "graphs", never_ours=frozenset({"QuickGELU"})),  # that sees pictures, of which none come
)


@pytest.fixture(scope="module")
def families(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Family, Path]]:
    """Checkpoints of the families, made once."""
    folder = tmp_path_factory.mktemp("families")
    wanted = {mode.family for mode in MODES}
    made = {family.name: (family, folder / family.name) for family in FAMILIES if family.name in wanted}
    for family, path in made.values():
        make_model(replace(family, config=functools.partial(config_on_a_gpu, family)), path)
    return made


def config_on_a_gpu(family: Family) -> Any:
    config = family.config()
    for name, value in SHAPES.get(family.name, SHAPE).items():
        setattr(config, name, value)
    return config


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(os.environ.get("TEST_LOGS") or tmp_path_factory.mktemp("logs"))


@pytest.fixture(scope="module")
def answers(families, logs) -> Callable[[Mode], tuple[Answer, Answer]]:
    """Return a function that runs a mode on vanilla SGLang and on ours, both at once."""

    @functools.cache
    def both(mode: str) -> tuple[Answer, Answer]:
        (found,) = (known for known in MODES if str(known) == mode)
        model = families[found.family][1]
        with ThreadPoolExecutor(2) as pool:
            sides = [pool.submit(run_side, found, is_ours, model, logs) for is_ours in (False, True)]
        return sides[0].result(), sides[1].result()

    return lambda mode: both(str(mode))


def run_side(mode: Mode, is_ours: bool, model: Path, logs: Path) -> Answer:
    orders = {"SGLANG_FL_PER_OP": mode.orders} if mode.orders else {}
    settings = {**OURS, **orders} if is_ours else VANILLA
    name = f"{mode}.{'ours' if is_ours else 'vanilla'}"
    return run(name, model, mode.engine, settings, PROMPTS, logs)


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_tokens_are_vanillas(mode: Mode, answers):
    (vanilla, _), (ours, _) = answers(mode)
    for theirs, mine in zip(vanilla, ours, strict=True):
        assert mine["prefill"][1:] == pytest.approx(theirs["prefill"][1:], abs=LIMIT)
        # Up to the first token that differs, if any, where the two best ones must have been as good.
        pairs = zip(theirs["tokens"], mine["tokens"], strict=True)
        agreed = next((i for i, (a, b) in enumerate(pairs) if a != b), len(mine["tokens"]))
        assert mine["decode"][: agreed + 1] == pytest.approx(theirs["decode"][: agreed + 1], abs=LIMIT)
    assert sum(a["tokens"] == b["tokens"] for a, b in zip(vanilla, ours, strict=True)) >= len(PROMPTS) / 2


@pytest.mark.parametrize("mode", MODES, ids=str)
def test_the_dispatch_log_tells_what_ran_each_class(mode: Mode, families, answers):
    _, (_, lines) = answers(mode)
    is_fused = "qk_norm_rope=sglang" not in mode.orders
    family = families[mode.family][0]
    classes = set(expected_classes(family) if is_fused else family.runs)
    own = {f"[OOT-DISPATCH] {name} → {ran}" for name, ran in mode.sglang}
    ours = {line for line in lines if "→ flagos(" in line}
    attention = {line for line in lines if line.startswith("[OOT-DISPATCH] RadixAttention → sglang(")}
    assert attention
    assert lines - ours - attention == own
    assert {line.split()[1] for line in ours} == classes - mode.never_ours
