"""A model's folder: its shape from ``config.json``, the size of its weights from the files' own headers."""

import json
import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sglang_fl.errors import SettingsError
from sglang_fl.logs.json_text import read_json
from sglang_fl.logs.shared_file import open_for_reading

__all__ = ["Model", "read_model"]

_SIZES = {"float32": 4, "float": 4, "float16": 2, "half": 2, "bfloat16": 2}
#: Weights in these are cast to the dtype that the server runs in; all others stay as they are.
_CAST = ("F32", "F16", "BF16")


@dataclass(frozen=True)
class Model:
    """What memory and ranks depend on.

    Parameters
    ----------
    folder : where it lies
    config : of its text part
    """

    folder: Path
    config: dict[str, Any]

    def number(self, *names: str) -> int | None:
        """Return the first of these entries of the configuration that is a number."""
        found = (self.config.get(name) for name in names)
        return next((value for value in found if isinstance(value, int)), None)

    @property
    def heads(self) -> int | None:
        """How many query heads it has."""
        return self.number("num_attention_heads", "n_head", "num_heads")

    @property
    def kv_heads(self) -> int | None:
        """How many key and value heads it has."""
        return self.number("num_key_value_heads", "multi_query_group_num", "num_kv_heads") or self.heads

    def element_size(self, dtype: str) -> int:
        """Return the bytes of a number in the dtype that the server runs in."""
        if dtype != "auto":
            return _SIZES.get(dtype, 2)
        stored = self.config.get("dtype") or self.config.get("torch_dtype") or "float32"
        # SGLang runs a model that is stored in float32, or does not say in what, in 16 bits.
        return min(2, _SIZES.get(str(stored).removeprefix("torch."), 2))

    def weight_files(self) -> list[Path]:
        """Return the files of its weights, whether they are there or not."""
        index = self.folder / "model.safetensors.index.json"
        if index.exists():
            names = sorted(set(_object(index).get("weight_map", {}).values()))
            return [self.folder / name for name in names]
        tensors = sorted(self.folder.glob("*.safetensors"))
        return tensors or sorted(self.folder.glob("*.bin")) or sorted(self.folder.glob("*.pt"))

    def weight_bytes(self, dtype: str) -> int:
        """Return the size of its weights on the device.

        Raises
        ------
        SettingsError : a file is missing or damaged
        """
        size = self.element_size(dtype)
        return sum(_bytes_on_device(path, size) for path in self.weight_files())

    def kv_bytes_per_token(self, dtype: str, tp: int) -> int | None:
        """Return the size of one token's keys and values on one rank, or None where the shape is not told."""
        layers, heads = self.number("num_hidden_layers", "n_layer"), self.kv_heads
        if layers is None or heads is None:
            return None
        latent = self.number("kv_lora_rank")
        if latent:
            return layers * (latent + (self.number("qk_rope_head_dim") or 0)) * self.element_size(dtype)
        width = self.number("head_dim") or (self.number("hidden_size", "n_embd") or 0) // (self.heads or 1)
        return 2 * layers * max(1, heads // tp) * width * self.element_size(dtype)

    @property
    def context(self) -> int:
        """How many tokens a sequence may have."""
        return self.number("max_position_embeddings", "n_positions", "seq_length") or 2048


def _bytes_on_device(path: Path, element_size: int) -> int:
    try:
        if path.suffix != ".safetensors":
            return int(path.stat().st_size)
        return sum(_tensor_bytes(entry, element_size) for entry in _tensors(path))
    except (OSError, ValueError, KeyError, TypeError, struct.error) as error:
        raise SettingsError(f"{path.name}: {error}") from error


def _tensors(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the header's entries: its length in 8 bytes, then so much JSON."""
    with open_for_reading(path) as file:
        (length,) = struct.unpack("<Q", file.read(8))
        if length > path.stat().st_size:
            raise ValueError("not a safetensors file, or cut off")
        header = json.loads(file.read(length))
    yield from (entry for name, entry in header.items() if name != "__metadata__")


def _tensor_bytes(entry: dict[str, Any], element_size: int) -> int:
    if entry["dtype"] in _CAST:
        return int(math.prod(entry["shape"])) * element_size
    start, stop = entry["data_offsets"]
    return int(stop - start)


def _object(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises
    ------
    SettingsError : there is none
    """
    try:
        found = read_json(path)
    except ValueError as error:
        raise SettingsError(f"{path}: {error}") from error
    if not isinstance(found, dict):
        raise SettingsError(f"{path}: not a JSON object")
    return found


def read_model(folder: Path) -> Model:
    """Read a model's configuration.

    Raises
    ------
    SettingsError : no folder, or no readable ``config.json`` in it
    """
    if not folder.is_dir():
        raise SettingsError(f"{folder} is no folder here: name the folder that holds config.json")
    config = _object(folder / "config.json")
    text: dict[str, Any] = next(
        (config[key] for key in ("text_config", "llm_config") if isinstance(config.get(key), dict)), {}
    )
    return Model(folder, {**config, **text})
