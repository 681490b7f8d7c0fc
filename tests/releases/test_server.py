"""The documented launch line, word for word, on older releases: the real server on the CPU.

Its processes are forked from one that has third-party modules loaded.
"""

import functools
from pathlib import Path

import pytest

import demo.server
from demo.server import serve
from sglang_fl.sglang_adapter.releases import representatives
from tests.programs import start_preloaded
from tests.releases.conftest import server_of

pytestmark = pytest.mark.timeout(500)

LAUNCH = ("--disable-piecewise-cuda-graph", "--max-total-tokens", "2048")


@pytest.mark.parametrize("release", representatives()[:-1])
def test_release_serves_and_runs_the_references(
    release: str, tiny_model: Path, tmp_path: Path, environment_of_release, monkeypatch
):
    start = functools.partial(start_preloaded, server=server_of(release))
    monkeypatch.setattr(demo.server, "start", start)
    log, dispatch_log = tmp_path / "server.log", tmp_path / "dispatch.log"
    environment = {**environment_of_release(release), "SGLANG_FL_DISPATCH_LOG": str(dispatch_log)}
    greedy = {"temperature": 0, "max_new_tokens": 4, "ignore_eos": True}
    with serve(tiny_model, log, arguments=LAUNCH, environment=environment, timeout=400) as server:
        lines = sorted(set(dispatch_log.read_text().splitlines()))
        answer = server.post("/generate", {"text": "Hello", "sampling_params": greedy})
    assert answer["meta_info"]["completion_tokens"] == 4
    assert lines == [
        "[OOT-DISPATCH] RMSNorm → reference(reference)",
        "[OOT-DISPATCH] RadixAttention → sglang(torch_native)",
        "[OOT-DISPATCH] RotaryEmbedding → reference(reference)",
        "[OOT-DISPATCH] SiluAndMul → reference(reference)",
    ]
