"""What a bisection leaves behind: the verdict, and scripts that repeat wrong calls without SGLang."""

import json
import platform
import tempfile
import time
import traceback
from collections.abc import Iterable
from dataclasses import replace
from importlib import metadata
from pathlib import Path

from sglang_fl.bisect.picture import as_page
from sglang_fl.bisect.steps import Step
from sglang_fl.bisect.verdict import ATTENTION, Culprit, Outcome, Verdict
from sglang_fl.errors import SettingsError, SglangFlError
from sglang_fl.logs.json_text import json_text
from sglang_fl.logs.redaction import redacted
from sglang_fl.sglang_adapter.terminal import last_error

__all__ = ["LOG", "PAGE", "broken", "make_folder", "with_limit", "with_page", "write_report"]

LAYER_2 = '''\
"""Repeats a call of {name} that went wrong in {where}: python {script}"""

from pathlib import Path

import torch

from sglang_fl.dispatch.op_check import Given, violations
from sglang_fl.ops import OPS
from sglang_fl.vendor import load_target

call = torch.load(Path(__file__).with_name("{inputs}"), weights_only=True)
call = {{k: v.to("{device}") if isinstance(v, torch.Tensor) else v for k, v in call.items()}}
before = Given(OPS["{name}"], call)
results = load_target("{target}")(**call)
for violation in violations(OPS["{name}"], "{where}", before, results, call):
    print(violation)
'''

ATTENTION_CALL = '''\
"""Holds what attention returned in {where}, where it went wrong, against float64: python {script}"""

from pathlib import Path

import torch

from sglang_fl.dispatch.op_check import Given, violations
from sglang_fl.ops import OPS

call = torch.load(Path(__file__).with_name("{inputs}"), weights_only=True)
call = {{k: v.to("{device}") if isinstance(v, torch.Tensor) else v for k, v in call.items()}}
result = call.pop("result")
op = OPS["extend_attention" if "qo_indptr" in call else "decode_attention"]
for violation in violations(op, "{where}", Given(op, call), result, call):
    print(violation)
'''

LAYER_1 = '''\
"""Repeats a call of {name} that went wrong: python {script}"""

from pathlib import Path

import torch

from sglang_fl.aten.call_check import compare
from sglang_fl.aten.plan import load_kernels
from sglang_fl.startup import configure

call = torch.load(Path(__file__).with_name("{inputs}"), weights_only=True)
call = torch.utils._pytree.tree_map(lambda v: v.to("{device}") if isinstance(v, torch.Tensor) else v, call)
(kernel,) = (k for k in load_kernels(configure().registry.vendor) if str(k) == "{name}")
for fault in compare(kernel, call):
    print(fault)
'''

#: What SGLang prints goes here, in the folder of the report.
LOG = "engine.log"
#: The verdict for people, beside ``verdict.json``.
PAGE = "verdict.html"
PACKAGES = ("sglang-fl-core", "sglang", "torch", "triton", "flag_gems", "transformers")


def make_folder(within: Path) -> Path:
    """Make a new folder, for its owner alone: inputs of calls tell what the prompts were.

    Parameters
    ----------
    within : where it is made; made itself if it is missing, and otherwise left as it is

    Raises
    ------
    SettingsError : it cannot be made
    """
    try:
        within.mkdir(parents=True, exist_ok=True, mode=0o700)
        return Path(tempfile.mkdtemp(prefix=time.strftime("%Y%m%d-%H%M%S-"), dir=within))
    except OSError as error:
        is_taken = isinstance(error, FileExistsError | NotADirectoryError)
        reason = "it, or a part of it, is no folder" if is_taken else error.strerror or error
        raise SettingsError(
            f"--folder {str(within)!r}: no folder can be made in it: {reason}. Name one that can be written."
        ) from None


def write_report(verdict: Verdict, folder: Path, device: str) -> None:
    """Write the verdict, the versions, and a script for each culprit beside its inputs.

    Parameters
    ----------
    verdict : what was found
    folder : where the inputs lie
    device : PyTorch's string
    """
    _write_verdict(verdict, folder)
    (folder / "versions.json").write_text(json.dumps(_versions(), indent=2) + "\n")
    for number, culprit in enumerate(verdict.culprits):
        if culprit.inputs:
            script = f"reproduce-{number}.py"
            (folder / script).write_text(_script(culprit, script, device))


def _write_verdict(verdict: Verdict, folder: Path) -> None:
    """Write the verdict alone, without secrets."""
    (folder / "verdict.json").write_text(json_text(verdict.as_json()) + "\n")


def broken(error: BaseException, folder: Path | None, steps: Iterable[Step] = ()) -> Verdict:
    """Return the verdict that there is none: the set-up is broken. The folder, if any, says by what."""
    summary = str(error) if isinstance(error, SglangFlError) else f"{type(error).__name__}: {error}"
    if isinstance(error, SystemExit) and folder is not None:
        summary = f"SGLang ended with code {error.code}: {last_error(folder / LOG)}"
    verdict = Verdict(Outcome.SET_UP_BROKEN, summary, steps=tuple(steps), folder=str(folder or ""))
    if folder is None:
        return verdict
    try:
        (folder / "error.txt").write_text(redacted("".join(traceback.format_exception(error))))
        _write_verdict(verdict, folder)
    except OSError as full:
        return with_limit(verdict, f"{folder} cannot be written: {full.strerror or full}")
    return verdict


def with_page(verdict: Verdict, folder: Path, subject: str) -> Verdict:
    """Write a verdict as a page, without secrets, and return it; it says so where that cannot be written.

    Parameters
    ----------
    verdict : whatever it says
    folder : in which ``verdict.json`` lies
    subject : the model and its launch line
    """
    try:
        (folder / PAGE).write_text(redacted(as_page(verdict, subject)), encoding="utf-8")
    except OSError as error:
        return with_limit(verdict, f"{folder / PAGE} cannot be written: {error.strerror or error}")
    return verdict


def with_limit(verdict: Verdict, limit: str) -> Verdict:
    """Return a verdict that says of one thing more what is missing from it."""
    return replace(verdict, limits=(*verdict.limits, limit))


def _script(culprit: Culprit, script: str, device: str) -> str:
    template = LAYER_2 if culprit.layer == 2 else LAYER_1
    if culprit.name == ATTENTION:
        template = ATTENTION_CALL
    return template.format(
        name=culprit.name,
        where=culprit.where,
        script=script,
        inputs=culprit.inputs,
        device=device,
        target=culprit.implementation.rpartition(" ")[2],
    )


def _versions() -> dict[str, str]:
    import torch  # not before there is a verdict: a folder that cannot be made is said in a second

    found = {"python": platform.python_version(), "torch": str(torch.__version__)}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
