"""The driver of all benchmarks: what it starts, skips, ends and tells, with jobs that take a moment."""

import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from benchmarks import bench_all
from benchmarks.about import COMMIT, about, commit
from benchmarks.bench_all import Board, Place, run_all, run_lane
from benchmarks.bench_engine import folder_of_homes, starts
from benchmarks.engine_models import CONFIGS
from benchmarks.jobs import ENGINES, JOBS, OPS, Job
from benchmarks.tables import commit_in, read_about, read_table, write_table

ROOT = Path(__file__).parents[1]
#: Writes a table that says where it ran, after some seconds, and ends with a code.
WRITES = """
import os, sys, time
from pathlib import Path
print("said", flush=True)
time.sleep(float(sys.argv[2]))
card, cores = os.environ["CUDA_VISIBLE_DEVICES"], " ".join(map(str, sorted(os.sched_getaffinity(0))))
Path(sys.argv[1]).write_text(f"# x; commit {os.environ['BENCH_COMMIT']}, y\\ncard,cores\\n{card},{cores}\\n")
sys.exit(int(sys.argv[3]))
"""


def job(name: str, seconds: int = 1, takes: float = 0, code: int = 0, rank: int = 1) -> Job:
    return Job(name, ("-c", WRITES, "{csv}", str(takes), str(code)), f"{name}_{{where}}.csv", seconds, rank)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path, "h200_sglang-0.5.23", "abc1234", time.monotonic() + 60)


def started(told: str) -> list[str]:
    return [line.split()[1].rstrip(":") for line in told.splitlines() if ": done" in line]


def test_each_card_has_cores_of_its_own(place: Place):
    board = run_all([job("one", takes=1), job("two", takes=1)], place, ["0", "1"])
    assert (board.failed, board.waiting) == ({}, [])
    tables = [read_table(place.result(job(name)))[0] for name in ("one", "two")]
    assert {table["card"] for table in tables} == {"0", "1"}
    first, second = ({*table["cores"].split()} for table in tables)
    mine = os.sched_getaffinity(0)
    assert len(mine) == 1 or not first & second
    assert mine == os.sched_getaffinity(0)


def test_the_lower_rank_comes_first_then_the_longest(place: Place, capsys: pytest.CaptureFixture):
    jobs = [job("short", 2), job("long", 4), job("engine", 3, rank=0)]
    run_all(jobs, place, ["0"])
    assert started(capsys.readouterr().out) == ["engine", "long", "short"]


def test_a_table_of_this_commit_is_not_made_again(place: Place, capsys: pytest.CaptureFixture):
    run_all([job("one")], place, ["0"])
    capsys.readouterr()
    run_all([job("one"), job("two")], place, ["0"])
    told = capsys.readouterr().out
    assert "one is there already" in told
    assert started(told) == ["two"]
    run_all([job("one")], replace(place, commit="def5678"), ["0"])
    assert started(capsys.readouterr().out) == ["one"]
    assert commit_in(read_about(place.result(job("one")))) == "def5678"


def test_what_does_not_fit_into_the_time_is_not_started_and_named(
    place: Place, capsys: pytest.CaptureFixture
):
    board = run_all([job("long", 100), job("short", 1)], place, ["0"])
    assert bench_all.report(board) == 1
    told = capsys.readouterr().out
    assert started(told) == ["short"]
    assert "not started: long, 100 s" in told


def test_a_job_that_fails_is_named_with_its_log_and_stops_no_other(
    place: Place, capsys: pytest.CaptureFixture
):
    board = run_all([job("bad", 3, code=3), job("good", 1)], place, ["0"])
    assert bench_all.report(board) == 1
    told = capsys.readouterr().out
    assert started(told) == ["good"]
    assert "failed: bad ended with code 3" in told
    assert str(place.log(job("bad"))) in told
    assert place.log(job("bad")).read_text() == "said\n"
    assert not place.result(job("bad")).exists()


def test_a_job_without_a_table_has_failed(place: Place):
    board = run_all([Job("none", ("-c", "pass"), "none_{where}.csv", 1)], place, ["0"])
    assert "wrote no table" in board.failed["none"]


def test_a_job_that_takes_longer_than_what_is_left_is_ended(place: Place):
    begun = time.monotonic()
    board = run_all([job("slow", 1, takes=50)], replace(place, ends=begun + 2), ["0"])
    assert "ended after 2 s" in board.failed["slow"]
    assert time.monotonic() - begun < 30


def test_stopping_ends_the_job_that_runs_and_starts_no_other(place: Place):
    begun = time.monotonic()
    board = Board([job("slow", takes=50), job("next")])
    (place.out / "logs").mkdir()
    lane = threading.Thread(target=run_lane, args=(board, place, "0", sorted(os.sched_getaffinity(0))))
    lane.start()
    while not board.running:
        time.sleep(0.01)
    board.stop()
    lane.join(30)
    assert not lane.is_alive()
    assert time.monotonic() - begun < 30
    assert "ended with code -9" in board.failed["slow"]
    assert (board.waiting, board.running) == ([], [])
    assert board.start(["true"]) is None


@pytest.mark.parametrize(
    ("are_cold", "figure"),
    [((True, True), "cold start-up (s)"), ((False, False), "start-up (s)"), ((True, False), None)],
)
def test_a_start_is_cold_where_every_home_was_empty(are_cold: tuple[bool, bool], figure: str | None):
    sides = [Started(name, is_cold) for name, is_cold in zip(("vanilla", "layer2"), are_cold, strict=True)]
    figures = starts(sides)
    assert figures == {side.name: {figure: [7.0]} if figure else {} for side in sides}


@dataclass
class Started:
    """As much of an engine as a start needs."""

    name: str
    is_cold: bool

    def answer(self) -> float:
        return 7.0


def test_homes_are_kept_where_their_folder_is_named(tmp_path: Path):
    with folder_of_homes(tmp_path / "homes") as kept:
        (kept / "vanilla").mkdir()
    assert [home.name for home in (tmp_path / "homes").iterdir()] == ["vanilla"]
    with folder_of_homes(None) as homes:
        (homes / "vanilla").mkdir()
    assert not homes.exists()


def test_every_shape_and_every_op_has_a_job():
    assert {*ENGINES} == {*CONFIGS} - {"tiny"}
    source = (ROOT / "benchmarks/bench_ops.py").read_text()  # which imports what only a GPU's machine has
    makers = source.partition("\nOPS_OF = (")[2].partition("\n)\n")[0]
    assert {*OPS} == {*re.findall(r"\b[a-z][a-z0-9_]+\b", makers)}
    assert len({one.result for one in JOBS}) == len(JOBS)


@pytest.mark.parametrize("option", [["--only", "bench_opps_*"], ["--commit", "unknown"]])
def test_an_option_that_cannot_be_is_told(option: list[str]):
    command = [sys.executable, "-m", "benchmarks.bench_all", *option]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert answer.returncode != 0
    assert option[0] in answer.stderr
    assert "no such job. There are bench_engine_" in answer.stderr or "name it" in answer.stderr


def test_the_list_can_be_read_without_a_gpu():
    command = [sys.executable, "-m", "benchmarks.bench_all", "--list", "--only", "bench_step"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert " ".join(answer.stdout.split()) == "90 s bench_step: python -m benchmarks.bench_step --csv {csv}"


def test_the_line_above_a_table_names_command_commit_and_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv(COMMIT, "abc1234")
    monkeypatch.setattr(sys, "argv", ["x", "--op", "rms norm", "--csv", "table.csv"])
    write_table(tmp_path / "table.csv", about("and more"), ["a"], [[1]])
    line = read_about(tmp_path / "table.csv")
    assert "--op 'rms norm'; " in line
    assert "table.csv" not in line
    assert commit_in(line) == "abc1234"
    assert ", sglang 0.5." in line
    assert line.endswith("; and more")
    assert read_table(tmp_path / "table.csv") == [{"a": "1"}]


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="a copy of the tree without git")
def test_git_knows_the_commit(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv(COMMIT, raising=False)
    head = subprocess.check_output(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True).strip()
    assert commit() in (head, f"{head}-changed")
