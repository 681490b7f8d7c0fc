"""Doctor, where a start runs out of memory: weights, free memory and ``--mem-fraction-static``."""

import json
import math
import re
import struct
from pathlib import Path

import pytest
import torch

from doctor_rows import Doctor
from sglang_fl.diagnostics.doctor.model import read_model

safetensors = pytest.importorskip("safetensors.torch")

SHAPE = {"num_attention_heads": 8, "num_key_value_heads": 2, "hidden_size": 64, "num_hidden_layers": 3}
CONFIG = {**SHAPE, "max_position_embeddings": 512, "dtype": "bfloat16"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A folder with a configuration and 64 MiB of real weights in bfloat16."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    weights = {"weight": torch.zeros(1 << 25, dtype=torch.bfloat16)}
    safetensors.save_file(weights, tmp_path / "model.safetensors")
    return tmp_path


@pytest.fixture
def huge(tmp_path: Path) -> Path:
    """A file that says of itself that it holds 64 TiB; only its header takes room."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    numbers = 1 << 45
    entry = {"dtype": "BF16", "shape": [numbers], "data_offsets": [0, 2 * numbers]}
    header = json.dumps({"weight": entry}).encode()
    (tmp_path / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    return tmp_path


def memory(doctor: Doctor, model: Path, *words: str) -> tuple[int, dict[str, str]]:
    code, rows = doctor("--model", str(model), *words, "--only", "memory")
    return code, rows["memory"]


def test_share_that_leaves_no_room_for_the_weights_is_found(doctor: Doctor, model: Path):
    code, row = memory(doctor, model, "--mem-fraction-static", "0.000001")
    assert (code, row["state"]) == (1, "problem")
    assert "weights 64 MiB, 64 MiB on each of 1 ranks" in row["text"]
    assert "too little for the KV cache" in row["text"]
    value = re.fullmatch(r"try --mem-fraction-static (0\.\d\d)", row["remedy"])
    assert value, row["remedy"]
    assert memory(doctor, model, "--mem-fraction-static", value[1])[0] == 0


def test_share_that_leaves_no_room_for_activations_is_found(doctor: Doctor, model: Path):
    code, row = memory(doctor, model, "--mem-fraction-static", "0.999999")
    assert (code, row["state"]) == (1, "problem")
    assert "for activations and graphs" in row["text"]
    assert row["remedy"].startswith("try --mem-fraction-static 0.")


def test_model_that_is_too_large_is_found(doctor: Doctor, huge: Path):
    code, row = memory(doctor, huge)
    assert (code, row["state"]) == (1, "problem")
    assert "weights 65536.00 GiB" in row["text"]
    assert "quantized model" in row["remedy"]


def test_model_that_fits_is_well(doctor: Doctor, model: Path):
    code, row = memory(doctor, model)
    assert code == 0, row
    assert "--mem-fraction-static 0.5 by default" in row["text"]


def test_share_that_two_ranks_of_a_host_cannot_both_have_is_found(doctor: Doctor, model: Path):
    """Each rank takes its share of all that is free."""
    code, row = memory(doctor, model, "--tp", "2", "--mem-fraction-static", "0.6")
    assert (code, "leaves 0 MiB for activations" in row["text"]) == (1, True), row
    assert float(row["remedy"].split()[-1]) < 0.5


def test_ranks_share_the_memory_of_a_host(doctor: Doctor, model: Path):
    free = [
        float(re.search(r"free for a rank ([\d.]+) GiB", memory(doctor, model, "--tp", tp)[1]["text"])[1])
        for tp in ("1", "2")
    ]
    assert math.isclose(free[0], 2 * free[1], rel_tol=0.2)


@pytest.mark.parametrize(
    ("dtype", "launch", "size"),
    [("bfloat16", "auto", 2), ("float32", "auto", 2), ("float32", "float32", 4), ("float16", "bfloat16", 2)],
)
def test_weights_count_in_the_dtype_that_is_served(tmp_path: Path, dtype: str, launch: str, size: int):
    (tmp_path / "config.json").write_text(json.dumps({"torch_dtype": dtype}))
    tensors = {"a": torch.zeros(3, 5, dtype=getattr(torch, dtype)), "b": torch.zeros(7, dtype=torch.int8)}
    safetensors.save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert read_model(tmp_path).weight_bytes(launch) == 15 * size + 7


def test_files_of_the_index_alone_count(model: Path):
    """As SGLang does: some checkpoints hold the weights a second time, in one file for another program."""
    (model / "consolidated.safetensors").write_bytes((model / "model.safetensors").read_bytes())
    index = {"weight_map": {"weight": "model.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))
    assert read_model(model).weight_bytes("auto") == 1 << 26


@pytest.mark.parametrize("damage", ["missing", "cut off", "no weights", "no config"])
def test_damaged_model_cannot_be_told_of(doctor: Doctor, model: Path, damage: str):
    file = model / "model.safetensors"
    if damage == "missing":
        index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
        (model / "model.safetensors.index.json").write_text(json.dumps(index))
    elif damage == "cut off":
        file.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    elif damage == "no weights":
        file.unlink()
    else:
        (model / "config.json").write_text("{")
    code, row = memory(doctor, model)
    assert (code, row["state"]) == (2, "unknown"), row


def test_keys_and_values_of_a_token():
    config = {**CONFIG, "head_dim": 16}
    one = read_model_of(config).kv_bytes_per_token("auto", 1)
    assert one == 2 * 3 * 2 * 16 * 2
    assert read_model_of(config).kv_bytes_per_token("auto", 4) == one // 2  # one head is the least
    latent = read_model_of({**config, "kv_lora_rank": 512, "qk_rope_head_dim": 64})
    assert latent.kv_bytes_per_token("auto", 8) == 3 * 576 * 2


def read_model_of(config: dict):
    from sglang_fl.diagnostics.doctor.model import Model

    return Model(Path(), config)
