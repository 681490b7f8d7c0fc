"""Which result files there are, for the pages' tables and the plots: one answer for both.

A file is called ``SUBJECT_h200_sglang-RELEASE_PART.csv``; without a part where the subject is one table. The
pages tell of one chip, ``CHIP``; files of another one may lie beside its. Of an op the newest release counts;
of a model that was served with some of its layers the deepest cut, for each release.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks.jobs import ENGINES
from benchmarks.tables import Row, commit_in, read_about, read_table

__all__ = [
    "CHIP",
    "DEFAULTS",
    "MODELS",
    "PREFILLS",
    "REQUESTS",
    "RESULTS",
    "WORKLOADS",
    "Served",
    "Table",
    "checkpoint",
    "newest",
    "newest_served",
    "read",
    "served",
    "told",
]

RESULTS = Path(__file__).parent / "results"
#: Of which the pages tell, in their sentences too, as its files call it.
CHIP = "h200"
#: Of an engine, as the files call them, and as the pages do.
WORKLOADS = {
    "1 request, 512 in, 128 out": "1 request",
    "16 requests, 512 in, 128 out": "16 requests",
    "64 requests, 512 in, 128 out": "64 requests",
    "prefill of 16 x 1024": "prefill 16 x 1024",
    "prefill of 1 x 512": "prefill 1 x 512",
}
PREFILLS = tuple(name for name in WORKLOADS if name.startswith("prefill"))
REQUESTS = tuple(name for name in WORKLOADS if name not in PREFILLS)
#: The side with the plugin as it is by default.
DEFAULTS = "layer2"


@dataclass(frozen=True)
class Table:
    """A result file.

    Parameters
    ----------
    path : of the file
    about : the line that says how it came about
    rows : by the names of its columns
    """

    path: Path
    about: str
    rows: list[Row]

    @property
    def release(self) -> str:
        """SGLang's."""
        found = re.search(r"\bsglang ([\d.]+)", self.about)
        return found[1] if found else "?"

    @property
    def plugin(self) -> str:
        """The version of core."""
        found = re.search(r"\bsglang-fl-core ([\w.+]+)", self.about)
        return found[1] if found else "?"

    @property
    def day(self) -> str:
        """On which it was measured."""
        found = re.search(r"\b\d{4}-\d\d-\d\d\b", self.about)
        return found[0] if found else "?"

    @property
    def facts(self) -> dict[str, str]:
        """How it was measured: device, versions, day and commit."""
        device = re.search(r"NVIDIA [\w ]+|\d+-core \w+", self.about)
        facts = {"": device[0] if device else "?", "SGLang ": self.release, "sglang-fl-core ": self.plugin}
        for name in ("torch", "triton"):
            if found := re.search(rf"\b{name} (\d[\w.+]*)", self.about):
                facts[f"{name} "] = found[1]
        return facts | {"measured ": self.day, "commit ": commit_in(self.about) or "unknown"}


def told(tables: Iterable[Table | None]) -> str:
    """Say in words how several tables were measured, each fact once."""
    facts: dict[str, dict[str, None]] = {}
    for table in tables:
        for name, value in table.facts.items() if table else ():
            facts.setdefault(name, {})[value] = None
    return ", ".join(f"{name}{' and '.join(sorted(values))}" for name, values in facts.items())


def read(path: Path) -> Table:
    """Return a result file."""
    return Table(path, read_about(path), read_table(path))


def newest(subject: str, part: str = "", folder: Path = RESULTS) -> Table | None:
    """Return the table of a subject, or of one of its parts, of the newest release; None if there is none."""
    pattern = re.compile(
        rf"{subject}_{CHIP}_sglang-([\d.]+)" + (f"_{re.escape(part)}" if part else "") + r"\.csv"
    )
    found = [(match[1], path) for path in folder.glob("*.csv") if (match := pattern.fullmatch(path.name))]
    return read(max(found, key=lambda item: _order(item[0]))[1]) if found else None


def _order(release: str) -> tuple[int, ...]:
    return tuple(map(int, release.split(".")))


@dataclass(frozen=True)
class Served:
    """A model that was served with one release.

    Parameters
    ----------
    model : as its file is called
    table : its figures
    """

    model: str
    table: Table

    @property
    def name(self) -> str:
        """The checkpoint's, without the cut."""
        return checkpoint(self.model)

    @property
    def title(self) -> str:
        """The checkpoint, its dtype where that is not its own, and how many layers and experts are left."""
        name = re.sub("-FP8$", " in FP8", self.name)
        name += " in bfloat16" if name.startswith("gpt-oss") else ""
        name += f", {self.layers} layers" if self.layers else ""
        return name + (f", {self.experts} experts" if self.experts else "")

    @property
    def layers(self) -> int | None:
        """That are left; None if all are."""
        return self._left("L")

    @property
    def experts(self) -> int | None:
        """That each layer has left; None if all are."""
        return self._left("E")

    def _left(self, letter: str) -> int | None:
        found = re.search(rf"-(\d+){letter}\b", self.model.removeprefix(self.name))
        return int(found[1]) if found else None

    @property
    def sides(self) -> list[str]:
        """In the order in which they were named; ``vanilla`` is the first."""
        return list(dict.fromkeys(row["side"] for row in self.table.rows))

    @property
    def ours(self) -> str | None:
        """The side with the most of our kernels: the last that adds to the defaults, else the defaults."""
        whole = [side for side in self.sides if side.startswith(DEFAULTS) and "=sglang" not in side]
        return whole[-1] if whole else None

    def row(self, figure: str, side: str | None) -> Row | None:
        """Return the row of a side; None if it was not measured."""
        rows = (row for row in self.table.rows if (row["figure"], row["side"]) == (figure, side))
        return next(rows, None)


def served(folder: Path = RESULTS) -> list[Served]:
    """Return the models that were served, by name and release."""
    deepest: dict[tuple[str, str], Served] = {}
    for one in _served(folder):
        at = one.name, one.table.release
        if at not in deepest or _depth(one) > _depth(deepest[at]):
            deepest[at] = one
    return sorted(deepest.values(), key=lambda one: (_place(one.name), one.name, _order(one.table.release)))


def newest_served(folder: Path = RESULTS) -> list[Served]:
    """Return each model but those in FP8, on the newest release that served it."""
    newest_of = {one.name: one for one in served(folder)}
    return [one for one in newest_of.values() if not one.name.endswith("FP8")]


def checkpoint(model: str) -> str:
    """Return the name of a checkpoint without the cut that says how many layers and experts are left."""
    return re.sub(r"-\d+L(-\d+E)?$", "", model)


#: The models that are measured, in the order of the pages.
MODELS = tuple(map(checkpoint, ENGINES))


def _place(name: str) -> int:
    return MODELS.index(name) if name in MODELS else len(MODELS)


def _served(folder: Path) -> Iterator[Served]:
    for path in sorted(folder.glob("bench_engine_*.csv")):
        if found := re.fullmatch(rf"bench_engine_{CHIP}_sglang-[\d.]+_(.+)\.csv", path.name):
            yield Served(found[1], read(path))


def _depth(one: Served) -> float:
    return float("inf") if one.layers is None else one.layers
