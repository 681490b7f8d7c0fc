"""LoRA switched on: requests with an adapter and without one, in one batch, beside transformers."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.engine.fake_vendor import install_vendor
from tests.engine.judge import assert_agrees, compare
from tests.engine.models import BY_NAME, make_model
from tests.engine.questions import answers_to, as_request, draw_prompts, engine_arguments

pytestmark = pytest.mark.timeout(300)

#: SGLang's LoRA asks for pinned memory, which needs a GPU's driver. Without it this machine is like any CPU.
UNPINNED = """
import functools

import torch

from sglang_fl.vendor import Vendor

VENDOR = Vendor(
    "unpinned",
    device_type="cpu",
    core_api=1,
    probe="unpinned_vendor:why_unavailable",
    platform="sglang_fl.sglang_adapter.cpu_platform.CpuPlatform",
)


def why_unavailable():
    return None


def unpinned(make):
    return functools.wraps(make)(lambda *given, pin_memory=False, **named: make(*given, **named))


for name in ("tensor", "empty", "zeros"):
    setattr(torch, name, unpinned(getattr(torch, name)))
torch.Tensor.pin_memory = lambda tensor: tensor
"""
RANK, ALPHA = 4, 8
TARGETS = ("q_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
RAN = {"RMSNorm", "RotaryEmbedding", "SiluAndMul"}


def add_adapter(model: Any, folder: Path) -> Any:
    """Write a random adapter for a model; return a copy of the model with the adapter's weights added."""
    folder.mkdir()
    adapted, tensors = copy.deepcopy(model), {}
    generator = torch.Generator().manual_seed(2)
    for name, layer in adapted.named_modules():
        if name.endswith(TARGETS):
            down = 0.3 * torch.randn(RANK, layer.in_features, generator=generator)
            up = 0.3 * torch.randn(layer.out_features, RANK, generator=generator)
            tensors[f"base_model.model.{name}.lora_A.weight"] = down
            tensors[f"base_model.model.{name}.lora_B.weight"] = up
            layer.weight.data += ALPHA / RANK * up @ down
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": ALPHA,
        "target_modules": list(TARGETS),
        "bias": "none",
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return adapted


def test_requests_with_an_adapter_and_without_are_both_right(environment_of, tmp_path: Path):
    family = BY_NAME["Qwen2"]
    base = make_model(family, tmp_path / "model")
    adapted = add_adapter(base, tmp_path / "adapter")
    prompts, _ = draw_prompts(family, tmp_path / "model")
    of_batch = {"prompts": [None, "adapter"] * len(prompts), "followers": ["adapter", None] * len(prompts)}
    questions = {
        "engine": engine_arguments(
            tmp_path / "model",
            lora_paths=[f"adapter={tmp_path / 'adapter'}"],
            lora_backend="torch_native",
            max_loras_per_batch=2,
        ),
        **{
            name: {**as_request(prompts), "lora_path": paths[: len(prompts)]}
            for name, paths in of_batch.items()
        },
    }
    log = tmp_path / "dispatch.log"
    site = install_vendor(tmp_path / "site", "unpinned", UNPINNED)
    settings = {"PYTHONPATH": str(site), "SGLANG_FL_PLATFORM": "unpinned"}
    settings |= {"SGLANG_FL_STRICT": "1", "SGLANG_FL_DISPATCH_LOG": str(log)}
    run = answers_to(questions, tmp_path, environment_of(settings))
    ran = dict.fromkeys(RAN, "reference(reference)") | {"RadixAttention": "sglang(torch_native)"}
    lines = {f"[OOT-DISPATCH] {name} → {what}" for name, what in ran.items()}
    assert set(log.read_text().splitlines()) == lines
    far = 0.0
    for batch, paths in of_batch.items():
        for prompt, path, answer in zip(prompts, paths, run.result[batch], strict=False):
            right, wrong = (adapted, base) if path else (base, adapted)
            assert_agrees(compare(right, [prompt], [answer]))
            far = max(far, compare(wrong, [prompt], [answer]).prefill)
    assert far > 1  # the adapter matters
