"""Faults planted into one engine one after the other, and what ``sglang-fl bisect`` must say of each."""

import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.engine.fake_vendor import install_vendor
from tests.programs import Run, finish, server_for

__all__ = ["FAULTS", "Bisected", "assert_found", "bisect_planted"]

HERE = Path(__file__).parent
FLAGS = (
    *("--sampling-backend", "pytorch", "--grammar-backend", "none", "--skip-tokenizer-init"),
    *("--max-total-tokens", "2048", "--dtype", "float32", "--log-level", "error", "--sleep-on-idle"),
)
#: Each fault that ``faulty_vendor`` knows, with the guilty ops; some of several for ``float32-integers``.
FAULTS = {
    "nothing": set(),
    "fused": {"silu_and_mul"},
    "aten": {"aten::add.Tensor"},
    "fused and aten": {"silu_and_mul", "aten::add.Tensor"},
    "pair": {"rms_norm", "silu_and_mul"},
    "past-its-row": {"rotary_embedding"},
    "float32-integers": {"aten::add.Tensor", "aten::sub.Tensor", "aten::mul.Tensor"},
    "nondeterministic": {"silu_and_mul"},
}

#: The verdict of each fault as JSON, and the folder: ``reports`` of the first found, ``site``, ``planted``.
Bisected = tuple[dict[str, Any], Path]


def bisect_planted(
    faults: Iterable[str],
    model: Path,
    folder: Path,
    environment: Callable[[Mapping[str, str]], dict[str, str]],
    *flags: str,
) -> Bisected:
    """Start one engine and bisect it once for each fault.

    Parameters
    ----------
    faults : of ``FAULTS``, each may be followed by ``on rank 1``
    model : the checkpoint
    folder : an empty one
    environment : adds settings to the process's environment
    flags : of the launch line, beside those of all
    """
    site = install_vendor(folder / "site", "faulty", (HERE / "faulty_vendor.py").read_text())
    planted = folder / "planted"
    planted.mkdir()
    command = [sys.executable, str(HERE / "bisect_faults.py"), str(folder / "reports"), ",".join(faults)]
    settings = {"PYTHONPATH": str(site), "FAULTS_FOLDER": str(planted), "SGLANG_FL_PLATFORM": "faulty"}
    variables = environment(settings)
    command += ["--model-path", str(model), *FLAGS, *flags]
    run: Run = finish(command, variables, 650, server_for(variables))
    assert run.code == 0, run.output[-5000:]
    return run.result, folder


def assert_found(fault: str, verdict: dict[str, Any]) -> None:
    """The verdict names the guilty ops and no other."""
    guilty = FAULTS[fault.partition(" on rank ")[0]]
    assert verdict["outcome"] == ("found" if guilty else "nothing_found"), verdict
    names = {culprit["name"] for culprit in verdict["culprits"]}
    # Of each op calls were judged, if not in all shapes.
    assert all(limit.startswith("part of aten::") for limit in verdict["limits"]), verdict["limits"]
    assert not names & {*verdict["uncalled"]}
    # No call of a pair is wrong by itself.
    assert fault == "pair" or all(culprit["where"] for culprit in verdict["culprits"]), verdict
    if fault == "float32-integers":  # not every model has integers in all of them
        assert names <= guilty
        assert all("2^24" in culprit["what"] for culprit in verdict["culprits"]), verdict
    else:
        assert names == guilty, verdict
