"""Run one engine on a simulated chip and compare all that it says with transformers, in float32."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.engine.judge import Difference, compare
from tests.engine.models import BY_NAME, make_model
from tests.engine.questions import answers_to, as_request, draw_prompts, engine_arguments
from tests.forked import Server

__all__ = ["Judged", "Setup", "judge", "written_down"]

NEEDS = Path(__file__).parents[2] / "docs/chip-needs.md"


@dataclass(frozen=True)
class Setup:
    """A model family and how it is run.

    Parameters
    ----------
    family : its name
    runs : what the dispatch log must say of each layer class
    settings : beside the chip
    ranks : one process each, with collectives between them
    engine : arguments of ``sgl.Engine`` that only this chip needs
    beside : what the dispatch log says more of the same classes, ``RMSNorm → sglang(npu_norm_rope)``
    """

    family: str
    runs: Mapping[str, str]
    settings: Mapping[str, str]
    ranks: int = 1
    engine: Mapping[str, Any] = field(default_factory=dict)
    beside: frozenset[str] = frozenset()

    @property
    def column(self) -> str:
        """What the table of the chip's needs calls it."""
        return f"{self.family}{'' if self.runs else '-off'}"

    def __str__(self) -> str:
        return f"{self.column}-tp{self.ranks}" if self.ranks > 1 else self.column


@dataclass(frozen=True)
class Judged:
    """What one engine did.

    Parameters
    ----------
    setup : what ran
    dispatched : the lines of the dispatch log
    asked : what it asked of the chip
    differences : from transformers, of prompts and of followers with a cached prefix
    """

    setup: Setup
    dispatched: set[str]
    asked: set[str]
    differences: dict[str, Difference]


def judge(
    setup: Setup,
    folder: Path,
    environment: Callable[[dict[str, str]], dict[str, str]],
    server: Server | None = None,
) -> Judged:
    """Run an engine in a process of its own.

    Parameters
    ----------
    setup : what to run
    folder : an empty one for the model and the logs
    environment : adds settings to the process's environment
    server : of which the engine is forked; one with SGLang loaded if None
    """
    family = BY_NAME[setup.family]
    model = make_model(family, folder / "model")
    prompts, followers = draw_prompts(family, folder / "model")
    questions = {
        "engine": engine_arguments(
            folder / "model", tp_size=setup.ranks, **{**family.engine, **setup.engine}
        ),
        "prompts": as_request(prompts),
        "followers": as_request(followers),
    }
    logs = {name: folder / f"{name}.log" for name in ("dispatch", "record")}
    settings = {
        "SGLANG_FL_DISPATCH_LOG": str(logs["dispatch"]),
        "SGLANG_FL_SIMULATED_RECORD": str(logs["record"]),
        **setup.settings,
    }
    run = answers_to(questions, folder, environment(settings), server)
    lines = {name: log.read_text().splitlines() if log.exists() else [] for name, log in logs.items()}
    return Judged(
        setup,
        set(lines["dispatch"]),
        set(lines["record"]),
        {
            "prompts": compare(model, prompts, run.result["prompts"]),
            "followers": compare(model, followers, run.result["followers"]),
        },
    )


def written_down(vendor: str, column: str) -> set[str]:
    """Return what the table of a vendor's chip says of a model: the rows that are marked in its column."""
    _, _, page = NEEDS.read_text().partition(f"\n## {vendor}\n")
    lines = [line for line in page.partition("\n## ")[0].splitlines() if line.startswith("|")]
    rows = [[cell.strip(" `") for cell in line.strip("|").split("|")] for line in lines]
    index = rows[0].index(column)
    return {row[0] for row in rows[2:] if row[index]}
