"""The documented launch line on a CPU: what runs after start-up alone, and an answer.

Each process imports SGLang and the plugin by itself. ``test_demo`` starts the same line as a user does.
"""

import contextlib
import functools
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

import demo.server
from demo.server import ServerError, serve
from sglang_fl.logs.counters import LAYERS
from sglang_fl.sglang_adapter.releases import PIECEWISE_FLAG
from tests.deployed import CONTAINERS, health_command
from tests.engine.release import RELEASE
from tests.programs import processes_with, server_of_forks, start_preloaded

pytestmark = pytest.mark.timeout(400)

LAUNCH = ("--disable-piecewise-cuda-graph", "--max-total-tokens", "2048")
REFERENCES = [
    "[OOT-DISPATCH] RMSNorm → reference(reference)",
    "[OOT-DISPATCH] RadixAttention → sglang(torch_native)",
    "[OOT-DISPATCH] RotaryEmbedding → reference(reference)",
    "[OOT-DISPATCH] SiluAndMul → reference(reference)",
]


@pytest.fixture(scope="module")
def served(tiny_model: Path, tmp_path_factory, environment_of):
    """A running server, with its dispatch log as it was before any request of ours."""
    folder = tmp_path_factory.mktemp("served")
    dispatch_log = folder / "dispatch.log"
    environment = environment_of({"SGLANG_FL_DISPATCH_LOG": str(dispatch_log)})
    arguments = (*LAUNCH, "--enable-metrics", "--sleep-on-idle")
    start = functools.partial(start_preloaded, server=server_of_forks())
    with contextlib.ExitStack() as running:
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(demo.server, "start", start)
            launch = serve(tiny_model, folder / "server.log", arguments=arguments, environment=environment)
            server = running.enter_context(launch)
        yield server, sorted(set(dispatch_log.read_text().splitlines()))


def has_argument(log: str, name: str, value: object) -> bool:
    """Whether SGLang logged this server argument; it logs a dict, to 0.5.19 a dataclass."""
    return any(f"{written}{value!r}," in log for written in (f"{name!r}: ", f" {name}="))


def test_start_up_alone_writes_exactly_the_four_dispatch_lines(served):
    _, lines = served
    assert lines == REFERENCES


def test_metrics_count_what_runs_layers_beside_sglangs_own(served):
    server, _ = served
    with urllib.request.urlopen(f"{server.url}/metrics", timeout=60) as answer:
        lines = answer.read().decode().splitlines()
    assert any(line.startswith("sglang:") for line in lines)
    counted = (line.rpartition(" ") for line in lines if line.startswith(f"{LAYERS}_total{{"))
    layers = {labelled: float(value) for labelled, _, value in counted}
    # Two layers with two norms each, and the last norm.
    assert layers[f'{LAYERS}_total{{layer_class="RMSNorm",ran="reference(reference)"}}'] == 5
    assert layers[f'{LAYERS}_total{{layer_class="SiluAndMul",ran="reference(reference)"}}'] == 2


def test_a_chat_request_is_answered(served):
    server, _ = served
    answer = server.post(
        "/v1/chat/completions",
        {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 4},
    )
    assert answer["usage"]["completion_tokens"] == 4
    assert isinstance(answer["choices"][0]["message"]["content"], str)


@pytest.mark.parametrize("file", CONTAINERS, ids=lambda file: file.suffix)
def test_a_containers_question_about_health_is_answered(served, file: Path):
    server, _ = served
    python, *words = health_command(file)
    assert python == "python3"

    def code(url: str) -> int:
        asked = [word.replace("http://127.0.0.1:30000", url) for word in words]
        return subprocess.run([sys.executable, *asked], capture_output=True, timeout=60).returncode

    assert (code(server.url), code(f"http://127.0.0.1:{demo.server.free_port()}")) == (0, 1)


def test_the_former_flag_is_accepted_and_says_so_once(served):
    server, _ = served
    log = server.log.read_text(errors="replace")
    is_gone = RELEASE not in PIECEWISE_FLAG
    assert log.count("--disable-piecewise-cuda-graph is gone from this SGLang") == is_gone
    assert has_argument(log, "cuda_graph_backend_prefill", "disabled")


def test_a_platform_that_we_bring_leaves_half_of_the_memory(served):
    server, _ = served
    assert has_argument(server.log.read_text(errors="replace"), "mem_fraction_static", 0.5)


def test_an_op_that_is_not_on_the_preferred_kind_says_why_once(served):
    server, _ = served
    log = server.log.read_text(errors="replace")
    assert log.count("rms_norm runs on reference (flagos: vendor cpu has none") == 1


def test_the_banner_and_every_other_line_of_ours_is_logged_once(served):
    server, _ = served
    lines = [line.partition("] ")[2] for line in server.log.read_text(errors="replace").splitlines()]
    banners = [line for line in lines if line.startswith("sglang-fl-core ")]
    assert len(banners) == 1
    assert "vendor cpu" in banners[0]
    assert "layer 2 on, logged in " in banners[0]
    ours = [line for line in lines if "sglang-fl" in line or "SGLANG_FL" in line or " runs on " in line]
    assert len(ours) == len(set(ours)), ours


def test_a_port_in_use_is_refused_by_name(served, tiny_model: Path, tmp_path: Path):
    server, _ = served
    port = int(server.url.rpartition(":")[2])
    with (
        pytest.raises(ServerError, match=f"port {port} is in use"),
        serve(tiny_model, tmp_path / "server.log", port=port),
    ):
        pass


def test_a_server_that_dies_is_reported_with_its_last_lines(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(demo.server, "start", start_preloaded)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with (
        pytest.raises(ServerError, match=r"exit code \d+ before it was ready(.|\n)*no-such-model"),
        serve(tmp_path / "no-such-model", tmp_path / "server.log"),
    ):
        pass


def test_a_server_that_is_too_slow_is_reported_and_leaves_no_process(tiny_model: Path, tmp_path: Path):
    marker = f"{tmp_path.name}-served-name"
    with (
        pytest.raises(ServerError, match="not ready after 4 s"),
        serve(tiny_model, tmp_path / "server.log", arguments=("--served-model-name", marker), timeout=4),
    ):
        pass
    assert processes_with(marker) == []
