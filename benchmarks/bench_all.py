"""Every benchmark that needs a GPU, on all GPUs of this host at the same time.

    python -m benchmarks.bench_all [--out DIR] [--minutes N] [--only 'bench_ops_*'] [--cards 0,1] [--commit X]

A lane for each card takes one job after the other from ``benchmarks/jobs.py``, and pins it to cores of its
own: an equal part of those of the host. A job's table comes into ``--out`` once it has ended well; its output
is ``--out/logs/NAME.log``. What is there already, of the same commit, is skipped, so that a second call goes
on where the first has ended. A tree with changes is one commit, ``abc1234-changed``, however it has changed
since: remove the tables of before. With ``--minutes`` a job that is expected to take longer than what is left
is not started, and one that takes longer than that after all is ended. What engines compile is kept for
later ones of the same side on the same card, in ``--out``'s ``homes``. A job that fails stops no other. At
the end all jobs are told that have failed or were not started, and the exit status is 1 if there are any.
"""

import argparse
import fnmatch
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from benchmarks.about import COMMIT, commit
from benchmarks.jobs import JOBS, Job
from benchmarks.tables import commit_in, read_about

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Place:
    """Where the jobs run and what becomes of them.

    Parameters
    ----------
    out : folder of the results
    where : chip and release, for the names of the files
    commit : of the tree
    ends : when the time is over, by ``time.monotonic()``
    """

    out: Path
    where: str
    commit: str
    ends: float

    def result(self, job: Job) -> Path:
        """Return where a job's table comes to lie."""
        return self.out / job.result.replace("{where}", self.where)

    def log(self, job: Job) -> Path:
        """Return where a job's output comes to lie."""
        return self.out / "logs" / f"{job.name}.log"

    def has(self, job: Job) -> bool:
        """Say whether the table of this commit is there."""
        path = self.result(job)
        return path.exists() and commit_in(read_about(path)) == self.commit

    def left(self) -> float:
        """Return the seconds that are left."""
        return self.ends - time.monotonic()


@dataclass
class Board:
    """The jobs that lanes take from, and how those ended that they have taken.

    Parameters
    ----------
    waiting : in the order in which they are to start
    failed : names of jobs and what became of them
    running : their processes, each of which leads a group of its own
    is_stopped : no other is started
    """

    waiting: list[Job]
    failed: dict[str, str] = field(default_factory=dict)
    running: list[subprocess.Popen] = field(default_factory=list)
    is_stopped: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self, seconds: float) -> Job | None:
        """Take the first job that is expected to take no longer."""
        with self._lock:
            for job in self.waiting:
                if job.seconds <= seconds:
                    self.waiting.remove(job)
                    return job
        return None

    def start(self, command: Sequence[str], **options: Any) -> subprocess.Popen | None:
        """Start a job's process with these options of ``Popen``; None once all is stopped."""
        with self._lock:
            if self.is_stopped:
                return None
            process = subprocess.Popen(command, start_new_session=True, **options)
            self.running.append(process)
            return process

    def stop(self) -> None:
        """Start no other job, and end those that run."""
        with self._lock:
            self.is_stopped = True
            self.waiting.clear()
            running = list(self.running)
        for process in running:
            end(process)


def run_all(jobs: Iterable[Job], place: Place, cards: Sequence[str]) -> Board:
    """Run the jobs whose tables are not there yet, a lane a card; return what is left of them."""
    (place.out / "logs").mkdir(parents=True, exist_ok=True)
    wanted = sorted(jobs, key=lambda job: (job.rank, -job.seconds))
    board = Board([job for job in wanted if not place.has(job)])
    for job in wanted:
        if place.has(job):
            tell(f"{job.name} is there already")
    cores = shares(sorted(os.sched_getaffinity(0)), len(cards))
    lanes = [
        threading.Thread(target=run_lane, args=(board, place, card, own))
        for card, own in zip(cards, cores, strict=True)
    ]
    for lane in lanes:
        lane.start()
    try:
        for lane in lanes:
            lane.join()
    except KeyboardInterrupt:
        board.stop()
        raise
    return board


def shares(cores: Sequence[int], number: int) -> list[Sequence[int]]:
    """Return as many equal parts of the cores; all of them to each where there are too few."""
    size = len(cores) // number
    return [cores[size * n : size * (n + 1)] or cores for n in range(number)]


def run_lane(board: Board, place: Place, card: str, cores: Sequence[int]) -> None:
    """Run jobs on a card until none is left that fits."""
    os.sched_setaffinity(0, cores)  # of this thread; what it starts inherits them
    while job := board.take(place.left()):
        begun = time.monotonic()
        trouble = run_job(job, place, card, board)
        took = f"{time.monotonic() - begun:.0f} s, {job.seconds} expected, card {card}"
        if trouble:
            board.failed[job.name] = f"{trouble} ({took}): {place.log(job)}"
        tell(f"{job.name}: {trouble or 'done'} ({took})")


def run_job(job: Job, place: Place, card: str, board: Board) -> str | None:
    """Run a job on a card; return what went wrong, or None.

    Its files are written beside the results, and moved to them once it has ended well.
    """
    folder = place.out / "unfinished" / job.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    logs = place.out / "logs" / job.name
    logs.mkdir(exist_ok=True)
    names = {
        "{csv}": str(folder / place.result(job).name),
        "{logs}": str(logs),
        "{homes}": str(place.out / "homes" / card),
    }
    command = [sys.executable, *(names.get(word, word) for word in job.command)]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": card, COMMIT: place.commit}
    with place.log(job).open("w") as log:
        process = board.start(command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT)
        if process is None:
            return "was stopped"
        patience = min(job.patience, place.left())
        try:
            code = process.wait(timeout=patience)
        except subprocess.TimeoutExpired:
            return f"ended after {patience:.0f} s"
        finally:
            end(process)
            board.running.remove(process)
    if code:
        return f"ended with code {code}"
    if not (folder / place.result(job).name).exists():
        return "wrote no table"
    for path in folder.iterdir():
        path.replace(place.out / path.name)
    folder.rmdir()
    return None


def end(process: subprocess.Popen) -> None:
    """End a job and the engines that it has started or left behind."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def tell(words: str) -> None:
    print(time.strftime("%H:%M:%S"), words, flush=True)


def chip_and_cards() -> tuple[str, list[str]]:
    """Return what the GPUs are called, ``h200``, and the numbers of those that may be used."""
    query = ["nvidia-smi", "--query-gpu=index,name", "--format=csv,noheader"]
    names = dict(line.split(", ") for line in subprocess.check_output(query, text=True).splitlines())
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    name = next(iter(names.values()))
    return name.split()[1].lower(), visible.split(",") if visible else list(names)


def chosen(patterns: Sequence[str] | None) -> list[Job]:
    """Return the jobs that one of the patterns names; without patterns all that need not be asked for.

    Raises
    ------
    SystemExit : a pattern that names none
    """
    for pattern in patterns or ():
        if not any(fnmatch.fnmatch(job.name, pattern) for job in JOBS):
            raise SystemExit(
                f"--only {pattern}: no such job. There are {', '.join(job.name for job in JOBS)}"
            )
    if patterns:
        return [job for job in JOBS if any(fnmatch.fnmatch(job.name, pattern) for pattern in patterns)]
    return [job for job in JOBS if not job.is_asked_for]


def report(board: Board) -> int:
    """Tell what has failed and what was not started; return the exit status."""
    for name, trouble in board.failed.items():
        tell(f"failed: {name} {trouble}")
    for job in board.waiting:
        tell(f"not started: {job.name}, {job.seconds} s")
    return int(bool(board.failed or board.waiting))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("bench-all"), help="folder of tables and logs")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="that all may take")
    parser.add_argument("--only", action="append", metavar="PATTERN", help="jobs by name; again for more")
    parser.add_argument("--cards", help="numbers of the GPUs; without it all that are visible")
    parser.add_argument("--commit", default=commit(), help="of this tree, where there is no git")
    parser.add_argument("--list", action="store_true", help="name the jobs and run none")
    options = parser.parse_args()
    ends = time.monotonic() + 60 * options.minutes
    jobs = chosen(options.only)
    if options.list:
        for job in jobs:
            print(f"{job.seconds:5} s  {job.name}: python {' '.join(job.command)}")
        return 0
    if options.commit == "unknown":
        parser.error("--commit: here is no git that knows the commit of this tree; name it")
    chip, cards = chip_and_cards()
    place = Place(options.out.resolve(), f"{chip}_sglang-{version('sglang')}", options.commit, ends)
    return report(run_all(jobs, place, options.cards.split(",") if options.cards else cards))


if __name__ == "__main__":
    sys.exit(main())
