"""Model families: a tiny configuration of each, its random weights, and what SGLang runs it with."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers

__all__ = ["FAMILIES", "VOCABULARY", "Family", "make_model"]

VOCABULARY = 512


@dataclass(frozen=True)
class Family:
    """A model family as the engine must run it.

    Parameters
    ----------
    name : for test ids and the report
    covers : what the others do not have
    config : makes the tiny configuration
    runs : SGLang's layer classes that must run on an implementation of ours, with their ops
    model : the class in transformers that is made of the configuration
    engine : arguments of ``sgl.Engine`` that only this family needs
    """

    name: str
    covers: str
    config: Callable[[], transformers.PreTrainedConfig]
    runs: dict[str, str]
    model: Any = transformers.AutoModelForCausalLM
    engine: dict[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.name


def make_model(family: Family, folder: Path, *, seed: int = 0) -> torch.nn.Module:
    """Write a random-weight checkpoint in float32; return the model as transformers runs it."""
    torch.manual_seed(seed)
    config = family.config()
    model = family.model.from_config(config, attn_implementation="eager", dtype=torch.float32)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if _is_router(name):
                parameter.normal_(std=0.3)  # experts well apart, so that rounding chooses no other one
            elif parameter.dim() > 1:
                parameter.normal_(std=0.1)  # wide enough that every layer matters, and not chaotic
            else:
                parameter.add_(0.2 * torch.randn_like(parameter))  # norms around 1 or 0, biases around 0
        for name, buffer in model.named_buffers():
            if name.endswith("e_score_correction_bias"):
                buffer.normal_(std=0.2)
    model.save_pretrained(folder)
    return model.eval()


def _is_router(name: str) -> bool:
    return name.endswith((".gate.weight", ".router.weight"))


#: What most families share. The eps is large enough to be seen, the context small enough to be scaled.
SHAPE = {
    "hidden_size": 128,
    "intermediate_size": 192,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-3,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
}

SWIGLU = {"RMSNorm": "rms_norm", "SiluAndMul": "silu_and_mul"}
ROPE = {"RotaryEmbedding": "rotary_embedding"}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": 64}


def qwen2() -> transformers.PreTrainedConfig:
    return transformers.Qwen2Config(**SHAPE)


def qwen3() -> transformers.PreTrainedConfig:
    return transformers.Qwen3Config(**SHAPE)


def llama(rope: dict[str, Any]) -> transformers.PreTrainedConfig:
    return transformers.LlamaConfig(**SHAPE, rope_parameters={"rope_theta": 10000.0, **rope})


def llama3() -> transformers.PreTrainedConfig:
    return llama(
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        }
    )


def llama_linear() -> transformers.PreTrainedConfig:
    return llama({"rope_type": "linear", "factor": 4.0})


def llama_yarn() -> transformers.PreTrainedConfig:
    return llama(YARN)


FAMILIES = (
    Family("Qwen2", "biases of q, k and v", qwen2, {**SWIGLU, **ROPE}),
    Family("Qwen3", "norms of q and k", qwen3, {**SWIGLU, **ROPE}),
    Family(
        "Llama, llama3 rope",
        "rope scaled by wavelength",
        llama3,
        {**SWIGLU, "Llama3RotaryEmbedding": "rotary_embedding"},
    ),
    Family(
        "Llama, linear rope",
        "rope with positions scaled",
        llama_linear,
        {**SWIGLU, "LinearScalingRotaryEmbedding": "rotary_embedding"},
    ),
    Family(
        "Llama, YaRN",
        "rope scaled by wavelength, attention scaled",
        llama_yarn,
        {**SWIGLU, "YaRNScalingRotaryEmbedding": "rotary_embedding"},
    ),
)
