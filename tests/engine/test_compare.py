"""``sglang-fl compare`` on real servers: equal ones are the same, a mistake is told with its class.

The second server runs the kernels of a vendor package, into which mistakes are planted while it serves; it
wants an API key.
"""

import json
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

import demo.server
from demo.server import serve
from demo.tiny_model import make_tiny_model
from sglang_fl.cli import app
from sglang_fl.compare.answers import Answer
from sglang_fl.compare.client import About, Server
from sglang_fl.compare.judge import Judgement, Outcome
from sglang_fl.compare.procedure import compare_sides
from sglang_fl.compare.questions import CLASSES, Question
from tests.engine.fake_vendor import install_vendor
from tests.programs import start_preloaded
from tests.schemas import assert_fits

pytestmark = pytest.mark.timeout(400)

KEY = "a-key-of-this-server"
LAUNCH = ("--max-total-tokens", "2048", "--dtype", "float32", "--sleep-on-idle")
VENDOR = Path(__file__).parent / "compared_vendor.py"
#: One prompt is short, the other goes past 128 tokens.
PROMPTS = ("Once upon a time", " ".join(f"In chapter {n} a tokenizer met its vocabulary." for n in range(8)))
ASKED = tuple(word for text in PROMPTS for word in ("--prompt", text))
#: Each mistake with the classes of requests in which it must be seen; None: in all of them.
MISTAKES = {
    "scale": None,
    "eps": None,
    "rope": None,
    "nan": None,
    "nothing": None,
    "rope of prompts": None,  # what decode steps look back at was computed with it
    "rope of decode steps": {"batched", "decode"},
    "rope of cached": {"cached"},
    "rope of batches": {"batched"},
    "rope of long": {"long", "batched", "cached", "decode"},
}


class Remembered:
    """A side whose answers are asked for once: it is the same server in each comparison."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._about: About | None = None
        self._tokens: dict[str, tuple[int, ...]] = {}
        self._answers: dict[Question, tuple[Answer, ...]] = {}

    def about(self) -> About:
        self._about = self._about or self._server.about()
        return self._about

    def tokens_of(self, text: str) -> tuple[int, ...]:
        return self._tokens.get(text) or self._tokens.setdefault(text, self._server.tokens_of(text))

    def ask(self, question: Question) -> tuple[Answer, ...]:
        return self._answers.get(question) or self._answers.setdefault(question, self._server.ask(question))


@dataclass(frozen=True)
class Bench:
    """The two servers.

    Parameters
    ----------
    one : the address of the one without a vendor
    other : of the one in which mistakes are planted
    planted : the folder in which a file with a mistake's name plants it
    model : what both serve
    right : the first, for many comparisons
    """

    one: str
    other: str
    planted: Path
    model: Path
    right: Remembered

    def flush(self) -> None:
        request = urllib.request.Request(f"{self.other}/flush_cache?timeout=10", b"", method="POST")
        request.add_header("Authorization", f"Bearer {KEY}")
        with urllib.request.urlopen(request, timeout=30) as answer:
            assert answer.status == 200

    @contextmanager
    def with_mistake(self, name: str) -> Iterator[None]:
        (self.planted / name).touch()
        try:
            yield
        finally:
            (self.planted / name).unlink()

    def judged(self) -> Judgement:
        """Compare, with no prefix in the cache that another mistake has computed."""
        self.flush()
        return compare_sides((self.right, Server(self.other, KEY, 60, print)), PROMPTS, print).judgement


@pytest.fixture(scope="module")
def bench(tiny_model: Path, tmp_path_factory, environment_of) -> Iterator[Bench]:
    folder = tmp_path_factory.mktemp("compared")
    planted = folder / "planted"
    planted.mkdir()
    settings = {
        "PYTHONPATH": str(install_vendor(folder / "vendor", "compared", VENDOR.read_text())),
        "COMPARED_FOLDER": str(planted),
        "SGLANG_FL_PLATFORM": "compared",
        "SGLANG_FL_STRICT": "1",
    }
    starts = (("one", LAUNCH, {}), ("other", (*LAUNCH, "--api-key", KEY), settings))
    with pytest.MonkeyPatch.context() as patch, ExitStack() as stack, ThreadPoolExecutor(2) as pool:
        patch.setattr(demo.server, "start", start_preloaded)

        def started(name: str, launch: tuple[str, ...], extra: dict[str, str]) -> str:
            log, environment = folder / f"{name}.log", environment_of(extra)
            return stack.enter_context(serve(tiny_model, log, arguments=launch, environment=environment)).url

        one, other = pool.map(lambda start: started(*start), starts)
        yield Bench(one, other, planted, tiny_model, Remembered(Server(one, None, 60, print)))


def run(*words: object) -> Result:
    return CliRunner().invoke(app, ["compare", *map(str, words)])


def test_equal_servers_are_the_same_in_every_class(bench: Bench):
    said = run(bench.one, bench.other, "--api-key", KEY, "--json")
    verdict = json.loads(said.stdout)
    assert_fits("compare", verdict)
    assert (said.exit_code, verdict["outcome"], verdict["limits"]) == (0, "same", []), verdict
    assert [row["verdict"] for row in verdict["classes"]] == ["same"] * len(CLASSES)
    assert min(row["places"] for row in verdict["classes"]) > 100
    assert {side["dtype"] for side in verdict["sides"].values()} == {"float32"}
    assert KEY not in said.output


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_found_and_told_with_the_requests_that_it_affects(bench: Bench, mistake: str):
    with bench.with_mistake(mistake):
        judged = bench.judged()
    assert judged.outcome == Outcome.DIFFER, judged
    differing = {row.name for row in judged.classes if row.verdict == "differs"}
    assert differing == (MISTAKES[mistake] or {*CLASSES}), judged.summary
    assert [finding.side for finding in judged.findings if finding.kind == "not finite"] == (
        ["B"] if mistake == "nan" else []
    )
    if mistake == "rope of decode steps":
        assert "in generated tokens alone" in judged.summary


def test_a_server_that_does_not_repeat_itself_cannot_be_judged(bench: Bench):
    with bench.with_mistake("drift"):
        judged = bench.judged()
    assert judged.outcome == Outcome.CANNOT_DECIDE, judged
    assert [finding.side for finding in judged.findings if finding.kind == "drift"] == ["B"]


def test_with_the_mistakes_gone_they_are_the_same_again(bench: Bench):
    judged = bench.judged()
    assert judged.outcome == Outcome.SAME, judged


def test_transformers_agrees_with_the_server_and_not_with_a_mistake(bench: Bench):
    words = (bench.other, "--api-key", KEY, "--model", bench.model, *ASKED)
    bench.flush()
    said = run(*words)
    assert said.exit_code == 0, said.output
    with bench.with_mistake("eps"):
        said = run(*words)
    assert said.exit_code == 1, said.output


def test_other_weights_differ(bench: Bench, tmp_path: Path):
    said = run(bench.one, "--model", make_tiny_model(tmp_path / "other", seed=1), *ASKED)
    assert said.exit_code == 1, said.output
    assert "garbage" in said.stdout


@pytest.mark.parametrize("key", [(), ("--api-key", "another-key")])
def test_a_server_with_a_key_refuses_without_it(bench: Bench, key: tuple[str, ...]):
    said = run(bench.one, bench.other, *key)
    assert said.exit_code == 2
    assert f"{bench.other} refuses (HTTP 401). Give its key" in said.stderr
