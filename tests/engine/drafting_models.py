"""Tiny target models beside draft models that are right most of the time.

A draft model gets the embedding of a token beside the hidden state of the one before, and never the first
token. These ones look at the embedding alone, and their layer is the target's, whose input is the embedding
too: it has a root mean square of 1, so that a norm in front of it changes nothing. All that a draft model
lacks is the first token of a text.
"""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file

from tests.engine.configurations import SHAPE, deepseek_v3

__all__ = ["make_eagle", "make_mtp"]

WEIGHTS = "model.safetensors"


def make_eagle(folder: Path) -> torch.nn.Module:
    """Write a Llama of one layer into ``target`` and its draft model into ``draft``; return the target."""
    config = transformers.LlamaConfig(**{**SHAPE, "num_hidden_layers": 1, "rms_norm_eps": 1e-5})
    model = _drawn(transformers.LlamaForCausalLM(config))
    model.save_pretrained(folder / "target")
    weights = {
        name.removeprefix("model."): tensor.clone()
        for name, tensor in model.state_dict().items()
        if "layers" in name and "input_layernorm" not in name
    }
    size = config.hidden_size
    weights["embed_tokens.weight"] = model.model.embed_tokens.weight.detach().clone()
    weights["fc.weight"], weights["fc.bias"] = _first_half(size), torch.zeros(size)
    draft = folder / "draft"
    draft.mkdir()
    save_file(weights, draft / WEIGHTS)
    described = json.loads((folder / "target" / "config.json").read_text())
    (draft / "config.json").write_text(json.dumps({**described, "architectures": ["LlamaForCausalLMEagle"]}))
    return model


def make_mtp(folder: Path) -> torch.nn.Module:
    """Write a DeepSeek-V3 with a layer that predicts one token more into ``target``; return it without that.

    Of its two layers the first does nothing: SGLang takes a checkpoint with one layer for a draft model.
    """
    config: Any = deepseek_v3()
    config.num_hidden_layers, config.first_k_dense_replace, config.rms_norm_eps = 2, 1, 1e-6
    config.num_nextn_predict_layers = 1
    model = _drawn(transformers.DeepseekV3ForCausalLM(config))
    with torch.no_grad():
        model.model.layers[0].self_attn.o_proj.weight.zero_()
        model.model.layers[0].mlp.down_proj.weight.zero_()
        for name, module in model.named_modules():
            if name.endswith("_a_layernorm"):  # as ``make_model`` does
                module.variance_epsilon = config.rms_norm_eps
    model.save_pretrained(folder / "target")
    file = folder / "target" / WEIGHTS
    weights, size = load_file(file), config.hidden_size
    for name in [name for name in weights if name.startswith("model.layers.1.")]:
        weights[name.replace("layers.1", "layers.2")] = weights[name].clone()
    further = {
        "enorm": torch.ones(size),
        "hnorm": torch.ones(size),
        "eh_proj": _first_half(size),
        "shared_head.norm": weights["model.norm.weight"].clone(),
        "shared_head.head": weights["lm_head.weight"].clone(),
        "embed_tokens": weights["model.embed_tokens.weight"].clone(),
    }
    weights |= {f"model.layers.2.{name}.weight": tensor for name, tensor in further.items()}
    save_file(weights, file, metadata={"format": "pt"})
    return model


def _drawn(model: Any) -> Any:
    """Give a model random weights, and embeddings with a root mean square of 1."""
    torch.manual_seed(0)
    model = model.float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.1)
        embeddings = model.model.embed_tokens.weight.normal_()
        embeddings /= embeddings.square().mean(-1, keepdim=True).sqrt()
    return model


def _first_half(size: int) -> torch.Tensor:
    """Return what projects an embedding beside a hidden state to the embedding, (size, 2 size)."""
    return torch.eye(size, 2 * size)
