"""The manual steps of docs/debugging.md, bisect and verify on the real server, and one page about them.

    python -m tests.gpu.diagnose FOLDER            # the page is FOLDER/manual-steps.md
    python -m tests.gpu.diagnose FOLDER --device cpu --parts steps,verify

``DIAGNOSE_WITHOUT`` names ATen ops that are left out of "all": one that ends the engine has no verdict.

Each step is a command that ``sglang-fl bisect --plan`` prints, run as it stands by a shell. Engines mostly
start, so several run at once.
"""

import argparse
import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from demo.server import ServerError, free_port, running
from demo.tiny_model import make_tiny_model
from sglang_fl.bisect.manual_steps import STEPS
from sglang_fl.bisect.readings import Distance, Reading, distance, reading
from tests.engine.fake_vendor import install_vendor

__all__ = ["CPU", "GPU", "Findings", "Machine", "Step", "diagnose"]

ROOT = Path(__file__).parents[2]
PROMPTS = [[5 + i, 60 + i, 7, 80 + i, 9, 10][: 2 + i % 5] for i in range(15)] + [list(range(3, 130))]
REQUEST = {
    "input_ids": PROMPTS,
    "sampling_params": {"temperature": 0, "max_new_tokens": 8, "ignore_eos": True},
    "return_logprob": True,
    "logprob_start_len": 0,
    "top_logprobs_num": 5,
}
#: Seconds until a server is ready, and for a request that may have to compile kernels.
PATIENCE = 550
#: The ATen op whose kernel is made wrong; the model's layers with a bias call it.
TO_BE_WRONG = "addmm"


@dataclass(frozen=True)
class Machine:
    """Where and how engines run.

    Parameters
    ----------
    launch : of SGLang's launch line, for all steps
    vendor : target of the ``Vendor`` whose kernels run
    settings : that make this vendor the chosen one
    without_graphs : the flags that turn graphs off; None where there are none
    """

    launch: tuple[str, ...]
    vendor: str
    settings: Mapping[str, str]
    without_graphs: tuple[str, ...] | None


PARTS = ("steps", "verify", "bisect")
COMMON = ("--sampling-backend", "pytorch", "--grammar-backend", "none", "--max-total-tokens", "8192")
GPU = Machine(
    (
        "--disable-piecewise-cuda-graph",
        "--attention-backend",
        "triton",
        "--mem-fraction-static",
        "0.3",
        *COMMON,
    ),
    "sglang_fl_nvidia:NVIDIA",
    {"SGLANG_FL_PLATFORM": "nvidia"},
    ("--disable-cuda-graph",),
)
#: For a dry run: a vendor of right kernels for the CPU.
CPU = Machine(
    (
        *("--disable-piecewise-cuda-graph", "--device", "cpu", "--attention-backend", "torch_native"),
        *("--dtype", "float32", *COMMON),
    ),
    "faulty_vendor:VENDOR",
    {"SGLANG_FL_PLATFORM": "faulty", "SGLANG_PLATFORM": "sglang_fl", "CUDA_VISIBLE_DEVICES": ""},
    None,
)


@dataclass
class Step:
    """One start of the server.

    Parameters
    ----------
    title : what it is about
    command : as it was run; MODEL and PORT stand for what differs
    failure : why it did not start or answer
    dispatch : the lines of its dispatch log, sorted, each once; None where no log was written
    aten : the ATen ops of its record; None where no record was written
    answer : what it generated
    warnings : what the check of a live server said
    apart : from the first step
    seconds : from start to end
    """

    title: str
    command: str
    failure: str = ""
    dispatch: list[str] | None = None
    aten: list[str] | None = None
    answer: Reading | None = None
    warnings: list[str] = field(default_factory=list)
    apart: Distance | None = None
    seconds: float = 0.0


@dataclass
class Findings:
    """All that was found.

    Parameters
    ----------
    steps : the manual steps
    bisections : by what they are about, the verdict as JSON with ``wall``, seconds from start to end
    planted : the units that bisect has to find where they are planted
    checks : servers with SGLANG_FL_VERIFY
    """

    steps: list[Step] = field(default_factory=list)
    bisections: dict[str, dict[str, Any]] = field(default_factory=dict)
    planted: set[str] = field(default_factory=set)
    checks: list[Step] = field(default_factory=list)


class _Runner:
    """Starts engines on a machine, each in a folder of its own."""

    def __init__(self, machine: Machine, model: Path, folder: Path) -> None:
        self.machine = machine
        self._model = model
        self._folder = folder
        site = install_vendor(folder / "site", "planted", _source("gpu/planted_vendor.py"))
        if machine is CPU:
            install_vendor(site, "faulty", _source("engine/faulty_vendor.py"))
        path = [str(ROOT), str(site), os.environ.get("PYTHONPATH", "")]
        here = {"PYTHONPATH": os.pathsep.join(filter(None, path)), "PLANTED_ON": machine.vendor}
        program = f"{_python(folder / 'bin')}{os.pathsep}{os.environ['PATH']}"
        self.environment = {**os.environ, **here, "PATH": program, **machine.settings}

    def planted(self, fused: str, aten: str) -> dict[str, str]:
        """Return the settings that choose the vendor with these two kernels wrong."""
        return {"SGLANG_FL_PLATFORM": "planted", "PLANTED_FUSED": fused, "PLANTED_ATEN": aten}

    def command(self, number: int, model: str, port: str, *flags: str) -> str:
        """Return a command of the plan."""
        line = STEPS[number - 1].command(model, [*self.machine.launch, *flags, "--port", port])
        return line.replace("OP=KIND", "rms_norm=flagos").replace("WHITELIST=OPS", "WHITELIST=mul,add")

    def step(
        self, number: int, title: str, change: tuple[str, str] = ("", ""), *flags: str, **settings: str
    ) -> Step:
        """Run one command of the plan, with part of its text changed, and settings before it."""
        port = free_port()
        before = "".join(f"{name}={shlex.quote(value)} " for name, value in settings.items())
        said = before + self.command(number, "MODEL", "PORT", *flags).replace(*change)
        line = before + self.command(number, str(self._model), str(port), *flags).replace(*change)
        step = Step(title, said)
        folder = self._folder / re.sub(r"\W+", "-", title)
        folder.mkdir(parents=True)
        begun = time.monotonic()
        try:
            with running(
                ["bash", "-c", line],
                port,
                folder / "server.log",
                folder=folder,
                environment=self.environment,
                timeout=PATIENCE,
            ) as server:
                step.answer = reading(server.post("/generate", REQUEST, timeout=PATIENCE))
        except (ServerError, KeyError) as error:
            step.failure = str(error)
        step.seconds = time.monotonic() - begun
        step.dispatch = _lines(folder / "dispatch.log")
        step.aten = _lines(folder / "aten.log")
        step.warnings = _said_by_check(folder / "server.log")
        print(f"{title}: {step.seconds:.0f} s{'; ' + step.failure if step.failure else ''}", flush=True)
        return step

    def bisect(self, title: str, aten: Iterable[str], **settings: str) -> dict[str, Any]:
        """Run ``sglang-fl bisect`` with these ATen ops as the white list."""
        folder = self._folder / re.sub(r"\W+", "-", title)
        folder.mkdir(parents=True)
        command = [sys.executable, "-c", "from sglang_fl.cli import app; app()", "bisect", "--json"]
        command += ["--model", str(self._model), "--folder", str(folder / "report"), *self.machine.launch]
        names = {"USE_FLAGGEMS": "1", "SGLANG_FL_FLAGOS_WHITELIST": ",".join(aten)}
        begun = time.monotonic()
        with (folder / "output.log").open("wb") as output:
            process = subprocess.Popen(
                command,
                env={**self.environment, **names, **settings},
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=folder,
                start_new_session=True,
            )
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, 9)
        written = list((folder / "report").glob("*/verdict.json"))
        if written:
            verdict = json.loads(written[0].read_text())
        else:
            verdict = {
                "outcome": "no verdict",
                "summary": f"exit code {process.wait()}",
                "culprits": [],
                "numbers": {},
            }
        verdict["wall"] = time.monotonic() - begun
        print(f"{title}: {verdict['outcome']}, {verdict['summary'][:300]}", flush=True)
        return verdict


def diagnose(
    machine: Machine, folder: Path, *, parts: Iterable[str] = PARTS, model: Path | None = None, jobs: int = 8
) -> Findings:
    """Run everything, or parts of it; the page is written anew after each.

    Parameters
    ----------
    folder : for logs and the page
    parts : some of ``PARTS``
    model : a checkpoint; default: a tiny one of random weights
    jobs : engines at once
    """
    folder.mkdir(parents=True, exist_ok=True)
    run = _Runner(machine, model or make_tiny_model(folder / "model"), folder)
    offered = _offered(run.environment)
    found = Findings()
    with ThreadPoolExecutor(jobs) as pool:
        # The longest first.
        bisections = _bisections(pool, run, offered) if "bisect" in parts else {}
        steps = _steps(pool, run, offered) if "steps" in parts else []
        checks = _checks(pool, run) if "verify" in parts else []
        for future in steps:
            found.steps.append(future.result())
            _compare(found.steps, found.steps[0])
            _write(folder, found, machine)
        for future in checks:
            found.checks.append(future.result())
            _compare(found.checks, (found.steps or found.checks)[0])
            _write(folder, found, machine)
        for name, future in bisections.items():
            found.bisections[name] = future.result()
            _write(folder, found, machine)
        if bisections:
            whole = found.bisections["as they are"]
            found.bisections["without the culprits"] = _without_culprits(run, whole, offered)
            found.planted = {"silu_and_mul", f"aten::{TO_BE_WRONG}"}
            _write(folder, found, machine)
    return found


def _compare(steps: Iterable[Step], baseline: Step) -> None:
    for step in steps:
        if step.answer is not None and baseline.answer is not None:
            step.apart = distance(step.answer, baseline.answer)


def _write(folder: Path, found: Findings, machine: Machine) -> None:
    (folder / "manual-steps.md").write_text(_page(found, machine))


def _bisections(
    pool: ThreadPoolExecutor, run: _Runner, offered: list[str]
) -> dict[str, Future[dict[str, Any]]]:
    """Begin to bisect over all ATen ops, as they are and with two kernels made wrong."""
    planted = run.planted("silu_and_mul", TO_BE_WRONG)
    return {
        "as they are": pool.submit(run.bisect, "bisect all", offered),
        "two wrong kernels planted": pool.submit(run.bisect, "bisect planted", offered, **planted),
    }


def _without_culprits(run: _Runner, whole: dict[str, Any], offered: list[str]) -> dict[str, Any]:
    """Bisect once more without what was found, if anything was."""
    wrong = {culprit["name"] for culprit in whole["culprits"]}
    if not wrong:
        return whole
    fused = ",".join(name for name in sorted(wrong) if not name.startswith("aten::"))
    right = [name for name in offered if _overload(name) not in wrong]
    settings = {"SGLANG_FL_OOT_BLACKLIST": fused} if fused else {}
    return run.bisect("bisect the right set", right, **settings)


def _steps(pool: ThreadPoolExecutor, run: _Runner, offered: list[str]) -> list["Future[Step]"]:
    steps = [
        pool.submit(run.step, 1, "1 plugins off"),
        pool.submit(run.step, 3, "3 layer 2 alone"),
    ]
    for op in ("rms_norm", "silu_and_mul", "rotary_embedding"):
        change = ("rms_norm=flagos", f"{op}=flagos")
        steps.append(pool.submit(run.step, 5, f"5 {op} alone", change))
    steps.append(pool.submit(run.step, 6, "6 layer 1 alone"))
    steps.append(pool.submit(run.step, 7, "7 white list of two"))
    everything = ("mul,add", ",".join(offered))
    steps.append(pool.submit(run.step, 7, "7 white list of all", everything))
    return steps


def _checks(pool: ThreadPoolExecutor, run: _Runner) -> list["Future[Step]"]:
    """Start servers that check every call: with graphs and without, right kernels and a wrong one."""
    verify = {"SGLANG_FL_VERIFY": "all", "SGLANG_FL_VERIFY_RATE": "1"}
    off = run.machine.without_graphs
    checks = [pool.submit(run.step, 3, "verify, right", ("", ""), **verify)]
    planted = run.planted("silu_and_mul", "")
    checks.append(pool.submit(run.step, 3, "verify, silu_and_mul wrong", ("", ""), **verify, **planted))
    if off is not None:
        checks.append(pool.submit(run.step, 3, "verify, right, no graphs", ("", ""), *off, **verify))
    return checks


def _offered(environment: Mapping[str, str]) -> list[str]:
    """Return the ATen ops that the vendor has kernels for, as a white list names each exactly."""
    code = (
        "from sglang_fl.aten import offered_ops\n"
        "from sglang_fl.startup import configure\n"
        "print('OPS', *(op.exact for op in offered_ops(configure().registry.vendor)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=dict(environment),
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("OPS"))
    left_out = os.environ.get("DIAGNOSE_WITHOUT", "").split(",")
    return [name for name in line.split()[1:] if name not in left_out]


def _python(folder: Path) -> Path:
    """Return a folder whose ``python`` is the one that runs this."""
    folder.mkdir(exist_ok=True)
    program = folder / "python"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    program.chmod(0o755)
    return folder


def _overload(exact: str) -> str:
    """Return the op as verdicts and records call it."""
    return exact.removesuffix(".default")


def _source(name: str) -> str:
    return (ROOT / "tests" / name).read_text()


def _lines(log: Path) -> list[str] | None:
    if not log.exists():
        return None
    lines = {line for line in log.read_text().splitlines() if line}
    ours = (line for line in lines if " RadixAttention → sglang(" not in line)
    return sorted(line.rpartition(" ")[2] if line.startswith("[DEBUG]") else line for line in ours)


def _said_by_check(log: Path) -> list[str]:
    wanted = re.compile(r"(checking one call in .*|\S+ in \S+: .* units of .*|calls of .* cannot be checked.*"
                        r"|.* returned numbers that are not finite.*)")  # fmt: skip
    found = (wanted.search(line) for line in log.read_text(errors="replace").splitlines())
    return [match[0] for match in found if match]


def _page(found: Findings, machine: Machine) -> str:
    """Return the page: machine, versions, commands, what ran, and how far each step is from the first."""
    parts = [
        "# The manual steps, bisect and verify\n",
        "<!-- norun: a record of runs on a GPU -->\n",
        f"`python -m tests.gpu.diagnose FOLDER` on {_device(machine)}; {_versions()}.\n",
        f"A tiny random-weight Qwen2 (`demo/tiny_model.py`), {len(PROMPTS)} prompts in one batch, 8 greedy",
        "tokens each. Differences are those of log-probabilities, position by position, from step 1.\n",
        _table(found.steps),
        "## Commands and logs\n",
        *map(_detail, found.steps),
        "## Bisect\n",
        *(_bisection(name, verdict) for name, verdict in found.bisections.items()),
        f"Planted: {', '.join(sorted(found.planted)) or 'nothing'}.\n",
        "## Verify\n",
        _table(found.checks),
        *map(_detail, found.checks),
    ]
    return "\n".join(parts)


def _device(machine: Machine) -> str:
    import torch

    return torch.cuda.get_device_name() if machine is GPU else "a CPU"


def _versions() -> str:
    def version(name: str) -> str:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return "not installed"

    names = ("sglang", "torch", "triton", "flag_gems", "sglang-fl-core")
    return ", ".join(f"{name} {version(name)}" for name in names)


def _table(steps: Iterable[Step]) -> str:
    rows = [
        "| step | seconds | largest difference (nats) | likeliest tokens that differ, largest margin (nats) |"
    ]
    rows.append("|---|---|---|---|")
    for step in steps:
        if step.apart is None:
            said = "did not answer |"
        else:
            margins = [margin for _, _, margin in step.apart.flips]
            said = f"{step.apart.largest:.3g} | {len(margins)}" + (f", {max(margins):.3g}" if margins else "")
        rows.append(f"| {step.title} | {step.seconds:.0f} | {said} |")
    return "\n".join(rows) + "\n"


def _detail(step: Step) -> str:
    lines = [f"### {step.title}\n", "```bash", _shortened(step.command), "```\n"]
    if step.failure:
        lines += ["```", *step.failure.splitlines()[-8:], "```\n"]
    if step.dispatch is not None:
        lines += ["```", *step.dispatch, "```\n"]
    if step.aten is not None:
        names = ", ".join(f"`{name.removeprefix('aten::')}`" for name in step.aten)
        lines.append(f"{len(step.aten)} ATen ops recorded{': ' if names else ''}{names}.\n")
    if step.warnings:
        lines += ["```", *step.warnings[:12], "```\n"]
    return "\n".join(lines)


def _shortened(command: str) -> str:
    """Leave out the middle of a long white list."""
    return re.sub(
        r"(WHITELIST=[^ ]{60}[^ ,]*)[^ ]{80,}", lambda m: f"{m[1]},... ({m[0].count(',') + 1} ops)", command
    )


def _bisection(name: str, verdict: dict[str, Any]) -> str:
    numbers = ", ".join(f"{key} {value}" for key, value in verdict["numbers"].items())
    text = (
        f"{name}: **{verdict['outcome']}**: {verdict['summary']}. {verdict['wall']:.0f} s from start to end"
    )
    lines = [f"{text}; {numbers}.\n" if numbers else f"{text}.\n"]
    if verdict["culprits"]:
        lines += ["| culprit | where | what | dtype | shapes |", "|---|---|---|---|---|"]
        keys = ("name", "where", "what", "dtype", "shapes")
        lines += [f"| {' | '.join(str(culprit[key]) for key in keys)} |" for culprit in verdict["culprits"]]
        lines.append("")
    if verdict.get("limits"):
        lines += ["```", *verdict["limits"], "```\n"]
    if verdict.get("uncalled"):
        lines.append(f"{len(verdict['uncalled'])} ATen ops never called, so not judged.\n")
    return "\n".join(lines)


def main() -> None:
    """Run everything and write the page."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--parts", default=",".join(PARTS), help="steps, verify, bisect")
    parser.add_argument("--jobs", type=int, default=8, help="engines at once")
    given = parser.parse_args()
    machine = GPU if given.device == "cuda" else CPU
    parts = given.parts.split(",")
    diagnose(machine, given.folder.resolve(), parts=parts, model=given.model, jobs=given.jobs)


if __name__ == "__main__":
    main()
