"""The steps by which a user finds by hand what ``bisect`` finds: one table for ``--plan`` and the docs."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from sglang_fl.sglang_adapter.former_flags import FLAG, in_todays_words
from sglang_fl.startup import Configuration, configure
from sglang_fl.vendor import BackendKind

__all__ = ["STEPS", "ManualStep", "PlannedStep", "manual_steps", "markdown_table"]


@dataclass(frozen=True)
class ManualStep:
    """One start of the server.

    Parameters
    ----------
    number : by which the others refer to it
    runs : what of ours runs in it
    settings : the variables to set; ``OP=KIND`` and ``OPS`` stand for names that the user fills in
    wrong, right : what to do after wrong answers, and after right ones
    log : variables that have what ran written to a file
    """

    number: int
    runs: str
    settings: str
    wrong: str
    right: str
    log: str = ""

    def command(self, model: str, arguments: Sequence[str]) -> str:
        """Return the launch line with its settings before it."""
        given = shlex.join(arguments)
        launch = ["python", "-m", "sglang.launch_server", "--model-path", shlex.quote(model)]
        words = [self.settings, self.log, *launch, in_todays_words(given) if self.is_vanilla else given]
        return " ".join(filter(None, words))

    @property
    def is_vanilla(self) -> bool:
        """Whether the plugin is not loaded, so that SGLang alone reads the launch line."""
        return "__none__" in self.settings


_FUSED = "SGLANG_FL_DISPATCH_LOG=dispatch.log"
_ATEN = "SGLANG_FLAGGEMS_RECORD=1 SGLANG_FLAGGEMS_LOG_PATH=aten.log"

STEPS = (
    ManualStep(
        1,
        "nothing: SGLang without the plugin",
        "SGLANG_PLUGINS=__none__",
        wrong="it is not sglang-fl",
        right="step 2",
    ),
    ManualStep(
        2,
        "the plugin with both layers off",
        "USE_FLAGGEMS=0 SGLANG_FL_OOT_ENABLED=0",
        wrong="the plugin itself is to blame: report it",
        right="step 3",
    ),
    ManualStep(
        3,
        "layer 2 (fused ops)",
        "USE_FLAGGEMS=0",
        wrong="step 4",
        right="step 6",
        log=_FUSED,
    ),
    ManualStep(
        4,
        "layer 2, every op by its reference",
        "USE_FLAGGEMS=0 SGLANG_FL_PREFER=reference",
        wrong="a reference or the translation of a layer is to blame: report it",
        right="step 5",
        log=_FUSED,
    ),
    ManualStep(
        5,
        "layer 2, one op by a kernel; repeat it for each op of the log of step 3",
        "USE_FLAGGEMS=0 SGLANG_FL_PREFER=reference SGLANG_FL_PER_OP=OP=KIND",
        wrong="this kernel is to blame",
        right="the next op; after the last one only several together are wrong: run bisect",
        log=_FUSED,
    ),
    ManualStep(
        6,
        "layer 1 (ATen ops)",
        "SGLANG_FL_OOT_ENABLED=0",
        wrong="step 7",
        right="only both layers together are wrong: run bisect",
        log=_ATEN,
    ),
    ManualStep(
        7,
        "layer 1, half of the ATen ops in the record of step 6",
        "SGLANG_FL_OOT_ENABLED=0 SGLANG_FL_FLAGOS_WHITELIST=OPS",
        wrong="half of these, until one op is left",
        right="the other half",
        log=_ATEN,
    ),
)


def markdown_table() -> str:
    """Return the table of ``docs/debugging.md``."""
    rows = [f"| {s.number} | {s.runs} | `{s.settings}` | {s.wrong} | {s.right} |" for s in STEPS]
    head = ["| step | runs | settings | wrong answers | right answers |", "|---|---|---|---|---|"]
    return "\n".join([*head, *rows])


@dataclass(frozen=True)
class PlannedStep:
    """A step as it can be done on this machine.

    Parameters
    ----------
    number, runs : as of the step
    command : the launch line with its settings before it; empty where the step is left out
    wrong, right : what to do after wrong answers, and after right ones
    note : what the launch line has to do without
    left_out : why there is nothing to do
    """

    number: int
    runs: str
    command: str = ""
    wrong: str = ""
    right: str = ""
    note: str = ""
    left_out: str = ""

    def __str__(self) -> str:
        if self.left_out:
            return f"# Step {self.number} is left out: {self.left_out}."
        lines = [
            f"# Step {self.number}: {self.runs}.",
            f"#   Wrong answers: {self.wrong}. Right answers: {self.right}.",
            f"#   {self.note}" if self.note else "",
            self.command,
        ]
        return "\n".join(filter(None, lines))


def manual_steps(model: str, arguments: Sequence[str]) -> list[PlannedStep]:
    """Return the steps, as commands where they can be done on this machine.

    Parameters
    ----------
    model : as the launch line names it
    arguments : the rest of the launch line

    Raises
    ------
    SettingsError : the settings are wrong, as a start would say
    """
    configuration = configure()
    left_out = _left_out(configuration)
    planned = []
    for step in STEPS:
        if step.number in left_out:
            planned.append(PlannedStep(step.number, step.runs, left_out=left_out[step.number]))
            continue
        command = step.command(model, arguments)
        if step.number == 5:
            command = command.replace("OP=KIND", _kernels(configuration)[0])
        is_unknown = step.is_vanilla and FLAG in arguments
        note = f"Without the plugin SGLang does not know {FLAG} from 0.5.20 on." if is_unknown else ""
        wrong, right = _wrong(step, left_out), _right(step, left_out)
        planned.append(PlannedStep(step.number, step.runs, command, wrong, right, note))
    return planned


def _left_out(configuration: Configuration) -> dict[int, str]:
    """Return the steps that cannot be done on this machine, with the reason."""
    vendor, found = configuration.registry.vendor, {}
    if not _sglang_has_a_platform(configuration):
        found[1] = f"SGLang has no platform for {vendor.device_type} without the plugin"
    if not _kernels(configuration):
        reason = f"vendor {vendor} has no kernel here but the references"
        found |= {4: f"step 3 runs no kernel whose place a reference could take: {reason}", 5: reason}
    if vendor.aten is None or vendor.aten.missing:
        found |= dict.fromkeys((6, 7), f"vendor {vendor} has no ATen kernels here (layer 1)")
    return found


def _wrong(step: ManualStep, left_out: dict[int, str]) -> str:
    """Return what to do after wrong answers; where step 3 runs references alone, what follows from step 4."""
    return STEPS[3].wrong if step.number == 3 and 4 in left_out else step.wrong


def _right(step: ManualStep, left_out: dict[int, str]) -> str:
    """Return what to do after right answers, past the steps that cannot be done here."""
    return "sglang-fl is not to blame" if step.number == 3 and 6 in left_out else step.right


def _sglang_has_a_platform(configuration: Configuration) -> bool:
    vendor = configuration.registry.vendor
    if vendor.device_type != "cpu":
        return vendor.platform is None
    import torch

    from sglang_fl.settings import SglangSettings

    return bool(torch.accelerator.is_available()) or SglangSettings.read().use_cpu_engine == "1"


def _kernels(configuration: Configuration) -> list[str]:
    """Return the ops that have a kernel here, as orders: ``rms_norm=flagos``."""
    return [
        f"{name}={kernels[0].kind}"
        for name, resolution in configuration.resolutions.items()
        if (kernels := [impl for impl in resolution.candidates if impl.kind is not BackendKind.REFERENCE])
    ]
