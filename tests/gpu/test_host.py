"""With CUDA graphs nothing of the plugin runs on the host in a decode step; without them our kernels do."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.engine.fake_vendor import install_module
from tests.engine.models import BY_NAME, make_model
from tests.gpu.served import GPU
from tests.gpu.test_models import config_on_a_gpu

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(400)]

#: A plugin of SGLang's own kind, loaded in each of its processes: notes every call of a function of ours, and
#: of a wrapper that SGLang has put around its own for a hook.
NOTE_CALLS = """
import os, sys, threading

def load():
    notes = open(os.environ["NOTES"], "a", buffering=1)

    def note(frame, event, argument):
        path = frame.f_code.co_filename
        if event == "call" and ("/sglang_fl" in path or path.endswith("plugins/hook_registry.py")):
            notes.write(f"{os.getpid()} {path}:{frame.f_code.co_name}\\n")

    sys.setprofile(note)
    threading.setprofile(note)
"""

GENERATE = """
import json, os, sys, time
from pathlib import Path
import sglang

arguments, notes = json.loads(sys.argv[1]), Path(sys.argv[2])
if __name__ == "__main__":  # SGLang's processes import this file again
    engine = sglang.Engine(**arguments)
    print("RESULT", json.dumps([0, os.getpid(), notes.read_text().splitlines()]), flush=True)
    for number, new in enumerate((4, 1, 33, 1, 33)):
        before = len(notes.read_text().splitlines())
        prompt = [3 + number, *range(5, 40)]
        engine.generate(
            input_ids=[prompt], sampling_params={"temperature": 0, "max_new_tokens": new, "ignore_eos": True}
        )
        time.sleep(1)  # the scheduler still puts its last batch away
        noted = notes.read_text().splitlines()[before:]
        print("RESULT", json.dumps([new, os.getpid(), noted]), flush=True)
    engine.shutdown()
"""


def calls_by_new_tokens(folder: Path, **arguments: Any) -> dict[int, list[list[str]]]:
    """Start an engine and return what was noted: at its start (0) and for each request, by its new tokens.

    What the process that starts the engine noted is left out: the model runs in another.
    """
    family = BY_NAME["Qwen2"]
    make_model(replace(family, config=partial(config_on_a_gpu, family)), folder / "model")
    install_module(folder, "note_calls", NOTE_CALLS, "sglang.srt.plugins", "note_calls = note_calls:load")
    (folder / "generate.py").write_text(GENERATE)
    notes = folder / "notes"
    engine = {"model_path": str(folder / "model"), **GPU, "disable_radix_cache": True, **arguments}
    done = subprocess.run(
        [sys.executable, str(folder / "generate.py"), json.dumps(engine), str(notes)],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")]),
            "NOTES": str(notes),
            "SGLANG_FL_STRICT": "1",
        },
        capture_output=True,
        text=True,
        timeout=350,
        start_new_session=True,
    )
    told = [json.loads(line.removeprefix("RESULT")) for line in done.stdout.splitlines() if "RESULT" in line]
    assert len(told) == 6, done.stderr[-3000:]
    calls: dict[int, list[list[str]]] = {}
    for new, launcher, lines in told:
        calls.setdefault(new, []).append([line for line in lines if not line.startswith(f"{launcher} ")])
    return calls


def test_a_decode_step_in_a_graph_calls_nothing_of_the_plugin(tmp_path: Path):
    calls = calls_by_new_tokens(tmp_path)
    # The process that captured the graphs was watched.
    assert any("/flagos/rms_norm.py:rms_norm" in line for line in calls[0][0])
    assert max(map(len, calls[33])) <= max(map(len, calls[1])), calls[33]


def test_a_decode_step_without_graphs_is_seen_to_call_our_kernels(tmp_path: Path):
    calls = calls_by_new_tokens(tmp_path, disable_cuda_graph=True)
    longer = min(map(len, calls[33])) - max(map(len, calls[1]))
    assert longer >= 32
    assert any("/flagos/rms_norm.py:rms_norm" in line for line in calls[33][0])
