"""SGLang's layers on an NVIDIA GPU: what its models rely on, whatever kernel runs."""

import subprocess
import sys

import pytest

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(200)]

#: As models/llama4.py: views of one tensor go in, and what comes out is not looked at.
ROTATE_VIEWS = """
import torch
from sglang.srt.plugins import load_plugins
from sglang.srt import server_args

load_plugins()
if hasattr(server_args, "set_global_server_args_for_scheduler"):
    arguments = server_args.ServerArgs(model_path="dummy", device="cuda")
    server_args.set_global_server_args_for_scheduler(arguments)
from sglang.srt.layers.rotary_embedding.base import RotaryEmbedding
from sglang_fl.ops import OPS

layer = RotaryEmbedding(128, 128, 512, 10000, True, torch.bfloat16).cuda()
positions = torch.randint(0, 512, (37,), device="cuda")
for _ in range(2):
    packed = torch.randn(37, 6 * 128, device="cuda", dtype=torch.bfloat16)
    query, key = packed.split([4 * 128, 2 * 128], dim=-1)
    expected = OPS["rotary_embedding"].reference(positions, query, key, layer.cos_sin_cache, 128, True)
    layer(positions, query, key)
    error = (packed - torch.cat(expected, dim=-1)).abs().max().item()
    assert error < 0.05, error
print("ran", layer._forward_method.__module__)
"""


@pytest.mark.parametrize("prefer", ["flagos", "vendor", "reference"])
def test_query_and_key_are_rotated_in_place(prefer: str, monkeypatch):
    monkeypatch.setenv("SGLANG_FL_PREFER", prefer)
    monkeypatch.setenv("SGLANG_FL_STRICT", "1")
    done = subprocess.run([sys.executable, "-c", ROTATE_VIEWS], capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "ran sglang_fl.sglang_adapter.layers.rotary_embedding" in done.stdout
