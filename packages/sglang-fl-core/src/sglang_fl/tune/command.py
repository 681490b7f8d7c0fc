"""From a model and its launch line to a file. What takes long is imported late."""

import hashlib
import json
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sglang_fl.errors import SettingsError
from sglang_fl.logs.redaction import redacted
from sglang_fl.logs.shared_file import write_text
from sglang_fl.settings.outputs import check_outputs
from sglang_fl.sglang_adapter.checkpoint import vocabulary_of

if TYPE_CHECKING:
    from sglang_fl.startup import Configuration
    from sglang_fl.tune.aten_subject import AtenSubject
    from sglang_fl.tune.procedure import Options
    from sglang_fl.tune.subject import Subject
    from sglang_fl.tune.text import Report

__all__ = ["CANNOT_DECIDE", "FOUND", "GOOD", "Asked", "exit_code", "tune"]

GOOD, FOUND, CANNOT_DECIDE = 0, 1, 3


@dataclass(frozen=True)
class Asked:
    """What the user has asked for.

    Parameters
    ----------
    model : the folder of the checkpoint
    arguments : of SGLang's launch line, beside the model
    out : the file to write
    minutes : that it may take
    folder : of the states of all runs
    ops : only these; none for all
    rounds : starts of each engine
    with_sglang : whether SGLang's own path is tried in the place of each of our kernels
    is_forced : whether a file that exists is overwritten
    is_fresh : whether what was measured before is thrown away
    data : a second file to write, with all figures as JSON; None for none
    """

    model: str
    arguments: tuple[str, ...]
    out: Path
    minutes: float
    folder: Path
    ops: tuple[str, ...] = ()
    rounds: int = 2
    with_sglang: bool = True
    is_forced: bool = False
    is_fresh: bool = False
    data: Path | None = None

    @property
    def outputs(self) -> dict[str, Path]:
        """The files that are to be written, by their options."""
        return {"--out": self.out} | ({} if self.data is None else {"--json-file": self.data})


def tune(asked: Asked, say: Callable[[str], None]) -> "Report":
    """Measure, and write the file.

    Parameters
    ----------
    asked : what the user has asked for
    say : called with each step

    Raises
    ------
    SettingsError : something that the user must change
    EngineEndedError : the engine does not start
    """
    from sglang_fl.tune.budget import Budget

    budget = Budget(asked.minutes)
    _refuse_overwriting(asked)
    check_outputs(asked.outputs, for_settings="--out")
    vocabulary = vocabulary_of(asked.model)
    from sglang_fl.startup import configure
    from sglang_fl.tune import machine
    from sglang_fl.tune.engines import Launch
    from sglang_fl.tune.procedure import Tuning
    from sglang_fl.tune.state import open_state
    from sglang_fl.tune.text import as_yaml

    configuration = configure()
    subjects, aten = _subjects(asked, configuration)
    chip = machine.chip_name(configuration.registry, 60)
    key = _key(asked, configuration, chip)
    state = open_state(asked.folder, key, machine.versions(configuration.registry), asked.is_fresh)
    launch = Launch(asked.model, asked.arguments, vocabulary)
    options = _options(asked, configuration, _has_layer_1(configuration, aten))
    many = f"{len(subjects)} ops" + (f" and {len(aten.ops)} ATen ops" if aten.ops else "")
    say(f"tune: {many}; what is measured is kept in {state.folder}")
    about = _about(asked, configuration, chip)
    if aten.why_not:
        about["ATen ops"] = f"none is measured: {aten.why_not}"
        say(f"tune: no ATen op is measured: {aten.why_not}")
    with closing(state):
        report = Tuning(launch, subjects, aten, state, budget, options, _kept(configuration), say).run()
    report = replace(report, about=about)
    _write(asked.out, redacted(as_yaml(report)))
    return report


def exit_code(report: "Report") -> int:
    """Return 1 where what runs at present is wrong, 3 where nothing could be decided, else 0."""
    if report.wrong:
        return FOUND
    return GOOD if report.calls and (report.control or not report.unmeasured) else CANNOT_DECIDE


def _subjects(asked: Asked, configuration: "Configuration") -> tuple[Sequence["Subject"], "AtenSubject"]:
    """Return the ops, and the ATen ops, among whose implementations there is something to choose.

    Raises
    ------
    SettingsError : there is nothing to choose, or a setting stands against it
    """
    from sglang_fl.tune import subject
    from sglang_fl.tune.aten_subject import aten_subject_of
    from sglang_fl.tune.decide import ATEN

    subject.refuse_untunable(configuration.settings)
    aten_names = [name for name in asked.ops if name.startswith(ATEN)]
    names = [name for name in asked.ops if name not in aten_names]
    is_all, registry = not asked.ops, configuration.registry
    aten = aten_subject_of(configuration, aten_names, is_all or bool(aten_names))
    policy = configuration.settings.policy
    subjects = subject.subjects_of(registry, policy, names) if is_all or names else ()
    if not subjects and not aten.ops:
        more = f". ATen ops: {aten.why_not}" if aten.why_not else ""
        raise SettingsError(
            f"vendor {registry.vendor} has no implementation that is available here: nothing to choose{more}"
        )
    return subjects, aten


def _refuse_overwriting(asked: Asked) -> None:
    if asked.out.exists() and not asked.out.is_dir() and not asked.is_forced:
        raise SettingsError(
            f"--out {str(asked.out)!r}: it exists. Name another file, or overwrite it by --force."
        )
    if not asked.out.parent.is_dir():
        raise SettingsError(f"--out {str(asked.out)!r}: there is no folder {str(asked.out.parent)!r}.")


def _write(out: Path, text: str) -> None:
    try:
        write_text(out, text)
    except OSError as error:
        raise SettingsError(f"--out {str(out)!r}: {error.strerror or error}") from None


def _set_by_user(configuration: "Configuration") -> dict[str, str]:
    names = type(configuration.settings).model_fields
    told = zip(names, configuration.explain(), strict=True)
    return {entry.variable: entry.value for name, entry in told if configuration.settings.is_users(name)}


def _key(asked: Asked, configuration: "Configuration", chip: str) -> dict[str, Any]:
    """Return what makes measurements those of another run."""
    folder = Path(asked.model).resolve()
    return {
        "model": str(folder),
        "config": hashlib.sha256((folder / "config.json").read_bytes()).hexdigest(),
        "weights": [_form(file) for file in sorted((*folder.glob("*.safetensors"), *folder.glob("*.bin")))],
        "chip": chip,
        "arguments": list(asked.arguments),
        "settings": _set_by_user(configuration),
        "ops": sorted(asked.ops),
    }


def _form(file: Path) -> tuple[str, int, int]:
    """Return what tells a file of weights from another one of its name: reading it would take long."""
    about = file.stat()
    return file.name, about.st_size, about.st_mtime_ns


def _kept(configuration: "Configuration") -> Mapping[str, Any]:
    """Return what stands in the user's file: the one that is written takes its place."""
    from sglang_fl.settings.file import read_file

    path = configuration.settings.config
    return read_file(path) if path else {}


def _about(asked: Asked, configuration: "Configuration", chip: str) -> dict[str, str]:
    from sglang_fl.tune import machine

    registry = configuration.registry
    found = {
        "chip": chip,
        "model": Path(asked.model).name,
        "command": shlex.join(["sglang-fl", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "versions": ", ".join(f"{name} {text}" for name, text in machine.versions(registry).items()),
    }
    settings = _set_by_user(configuration)
    if settings:
        found["settings"] = ", ".join(f"{name}={text}" for name, text in settings.items())
    return found


def _options(asked: Asked, configuration: "Configuration", has_layer_1: bool) -> "Options":
    from sglang_fl.tune.engines import Load
    from sglang_fl.tune.procedure import Options

    device = configuration.registry.vendor.device_type
    longest = _context(asked)
    small = device == "cpu" or configuration.settings.simulated is not None
    decode = Load("decode", 4, 16, 16) if small else Load("decode", 16, 128, 128)
    prefill = Load("prefill", 1, 128, 1) if small else Load("prefill", 4, 1024, 1)
    loads = tuple(
        replace(load, prompt=max(1, min(load.prompt, longest - load.new - 1))) for load in (decode, prefill)
    )
    repetitions = 5 if small else 10
    is_cuda = device == "cuda" and not small
    with_layer_1 = asked.with_sglang and has_layer_1
    return Options(asked.rounds, repetitions, asked.with_sglang, with_layer_1, loads, is_cuda)


def _has_layer_1(configuration: "Configuration", aten: "AtenSubject") -> bool:
    """Whether ATen ops are replaced at present, and the file can say that they are not."""
    return bool(aten.replaced) and configuration.settings.source("use_flaggems") != "environment"


def _context(asked: Asked) -> int:
    """Return how many tokens a request of this model may have, as far as its folder says."""
    config = json.loads((Path(asked.model) / "config.json").read_text())
    text = config.get("text_config", config)
    found = text.get("max_position_embeddings")
    return found if isinstance(found, int) and found > 0 else 1 << 20
