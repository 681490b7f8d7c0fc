"""With CUDA graphs nothing of the plugin runs on the host in a decode step."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

from tests.engine.models import FAMILIES, make_model
from tests.gpu.test_models import GPU, config_on_a_gpu

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(400)]

#: A plugin of SGLang's own kind, loaded in each of its processes: notes every call of a function of ours, and
#: of a wrapper that SGLang has put around its own for a hook.
NOTE_CALLS = """
import os, sys

def load():
    notes = open(os.environ["NOTES"], "a", buffering=1)

    def note(frame, event, argument):
        path = frame.f_code.co_filename
        if event == "call" and ("/sglang_fl" in path or path.endswith("plugins/hook_registry.py")):
            notes.write(f"{os.getpid()} {path}:{frame.f_code.co_name}\\n")

    sys.setprofile(note)
"""

GENERATE = """
import json, sys, time
from pathlib import Path
import sglang

arguments, notes = json.loads(sys.argv[1]), Path(sys.argv[2])
if __name__ == "__main__":  # SGLang's processes import this file again
    engine = sglang.Engine(**arguments)
    for number, new in enumerate((4, 1, 33, 1, 33)):
        before = len(notes.read_text().splitlines())
        prompt = [3 + number, *range(5, 40)]
        engine.generate(
            input_ids=[prompt], sampling_params={"temperature": 0, "max_new_tokens": new, "ignore_eos": True}
        )
        time.sleep(1)  # the scheduler still puts its last batch away
        noted = notes.read_text().splitlines()[before:]
        print("RESULT", json.dumps([new, before, noted]), flush=True)
    engine.shutdown()
"""


def test_a_decode_step_runs_nothing_of_the_plugin(tmp_path: Path):
    (family,) = (family for family in FAMILIES if family.name == "Qwen2")
    make_model(replace(family, config=partial(config_on_a_gpu, family)), tmp_path / "model")
    (tmp_path / "note_calls.py").write_text(NOTE_CALLS)
    metadata = tmp_path / "note_calls-0.0.1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: note-calls\nVersion: 0.0.1\n")
    (metadata / "entry_points.txt").write_text("[sglang.srt.plugins]\nnote_calls = note_calls:load\n")
    (tmp_path / "generate.py").write_text(GENERATE)
    notes = tmp_path / "notes"
    arguments = json.dumps({"model_path": str(tmp_path / "model"), **GPU, "disable_radix_cache": True})
    done = subprocess.run(
        [sys.executable, str(tmp_path / "generate.py"), arguments, str(notes)],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]),
            "NOTES": str(notes),
            "SGLANG_FL_STRICT": "1",
        },
        capture_output=True,
        text=True,
        timeout=350,
        start_new_session=True,
    )
    told = [json.loads(line.removeprefix("RESULT")) for line in done.stdout.splitlines() if "RESULT" in line]
    assert len(told) == 5, done.stderr[-3000:]
    assert told[0][1], "nothing was noted while the engine started"
    calls = {new: [lines for asked, _, lines in told[1:] if asked == new] for new in (1, 33)}
    # 32 steps more call nothing more.
    assert max(map(len, calls[33])) <= max(map(len, calls[1])), calls[33]
