"""``sglang-fl compare`` and pretended servers: faults, bad answers, keys, and what is written wrongly."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import pretended_server
from pretended_server import Pretended, serving
from sglang_fl import progress
from sglang_fl.cli import app
from sglang_fl.compare import client
from sglang_fl.compare.client import Server, checked_address
from sglang_fl.compare.questions import CLASSES
from sglang_fl.errors import ServerError, SettingsError
from sglang_fl.settings import unknown_variables

SECRET = "sk-not-to-be-seen-1234"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Wait for nothing, and know for how long it would have been."""
    monkeypatch.delenv("SGLANG_FL_API_KEY", raising=False)
    monkeypatch.setattr(client, "FIRST_PAUSE", 0.01)


@pytest.fixture
def serve() -> Iterator[Callable[..., str]]:
    with ExitStack() as stack:
        yield lambda pretended: stack.enter_context(serving(pretended))


def run(*words: object) -> Result:
    return CliRunner().invoke(app, ["compare", *map(str, words)])


SHORT_PROMPTS = ("--prompt", "Hello, world", "--prompt", "Once upon a time there was a king " * 2)


def test_two_equal_servers_are_the_same_and_the_sides_get_one_another_questions(serve, monkeypatch):
    one, other = Pretended(), Pretended()
    monkeypatch.setattr(progress, "INTERVAL", 0.0)
    said = run(serve(one), serve(other))
    assert said.exit_code == 0, said.output
    assert said.stdout.startswith("same: ")
    assert [row.split()[0] for row in said.stdout.splitlines()[5:10]] == list(CLASSES)
    assert [(path, body) for path, _, body in one.asked] == [(path, body) for path, _, body in other.asked]
    bodies = [body for path, _, body in one.asked if path == "/generate"]
    assert {body["sampling_params"]["temperature"] for body in bodies} == {0}
    assert {body["top_logprobs_num"] for body in bodies} == {5}
    told = said.stderr.splitlines()
    assert "compare: asking A what it is" in told
    assert re.fullmatch(r"compare: questions, \w+ \((\d+) of \1\).*", told[-1])


def in_batches(request: dict[str, Any], index: int, place: int) -> float:
    return 0.1 * isinstance(request.get("input_ids", [0])[0], list)


FAULTS = {
    "decode": lambda request, index, place: 0.1 * (place < -1),
    "batched": in_batches,
    "cached": lambda request, index, place: 0.1 * (request["logprob_start_len"] > 0),
    "long": lambda request, index, place: 0.1 * (place > 64),
    "short": lambda request, index, place: 0.1 * (place == 1),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_one_class_is_told_with_its_class(serve, name: str, fits):
    said = run(serve(Pretended()), serve(Pretended(spoil=FAULTS[name])), "--json")
    verdict = json.loads(said.stdout)
    fits("compare", verdict)
    assert (said.exit_code, verdict["exit_code"], verdict["outcome"]) == (1, 1, "differ")
    verdicts = {row["name"]: row["verdict"] for row in verdict["classes"]}
    assert verdicts[name] == "differs"
    alone = {"cached": {"cached"}, "batched": {"batched"}, "decode": {"decode", "batched"}}
    if name in alone:
        assert {each for each, it in verdicts.items() if it == "differs"} == alone[name]
    if name == "decode":
        assert "in generated tokens alone" in verdict["summary"]
    assert verdict["worst"][0]["difference"] >= 0.1


def test_null_as_a_log_probability_is_told(serve, fits):
    def nulled(row: dict[str, Any]) -> dict[str, Any]:
        row["meta_info"]["input_token_logprobs"][-1][0] = None
        return row

    servers = serve(Pretended()), serve(Pretended(after=nulled))
    said = run(*servers, *SHORT_PROMPTS)
    assert said.exit_code == 1
    assert "log-probabilities of B are NaN, infinite or null" in said.stdout
    assert "inf" in said.stdout
    as_json = run(*servers, *SHORT_PROMPTS, "--json").stdout
    fits("compare", json.loads(as_json, parse_constant=pytest.fail))


def test_a_server_that_generates_nothing_is_told(serve):
    def emptied(row: dict[str, Any]) -> dict[str, Any]:
        row["meta_info"] |= {"output_token_logprobs": [], "output_top_logprobs": []}
        return row

    said = run(serve(Pretended()), serve(Pretended(after=emptied)), *SHORT_PROMPTS)
    assert said.exit_code == 1
    assert "answers of B are empty" in said.stdout


def test_a_server_that_drifts_cannot_be_decided(serve):
    draw = random.Random(0)
    drifting = Pretended(spoil=lambda request, index, place: draw.uniform(0, 0.05))
    said = run(serve(Pretended()), serve(drifting), *SHORT_PROMPTS, "--json")
    assert (said.exit_code, json.loads(said.stdout)["outcome"]) == (3, "cannot decide")


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_server_that_is_not_there_is_named(serve):
    address = f"http://127.0.0.1:{closed_port()}"
    said = run(serve(Pretended()), address)
    assert said.exit_code == 2
    assert f"{address} cannot be reached: Connection refused" in said.stderr


REFUSED = {
    "text": (lambda h: h.answer(200, b"<html>Welcome</html>"), "is not a SGLang server.*no JSON.*Welcome"),
    "another program": (lambda h: h.answer(200, {"models": []}), "is not a SGLang server"),
    "truncated": (pretended_server.truncated, "broke off.*no JSON"),
    "refusal": (
        lambda h: h.answer(500, {"error": {"message": "out of order"}}),
        r"HTTP 500\): 'out of order'",
    ),
    "redirect": (lambda h: h.answer(302, b"", Location="http://127.0.0.1:9/"), "leads elsewhere"),
    "slow": (pretended_server.slow, "gave no answer within 0.3 s; --timeout"),
    "no HTTP": (lambda h: h.wfile.write(b"SSH-2.0-OpenSSH\r\n"), "does not speak HTTP"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_is_no_server_of_ours_is_one_line_and_code_2(serve, what: str):
    answer, message = REFUSED[what]
    said = run(serve(Pretended(before=[answer])), serve(Pretended()), "--timeout", "0.3")
    assert said.exit_code == 2
    last = said.stderr.splitlines()[-1]
    assert last.startswith("sglang-fl: http://127.0.0.1:")
    assert re.search(message, last), last


def test_no_page_about_the_model_is_no_sglang(serve):
    said = run(serve(Pretended(before=[lambda h: h.answer(404, {})] * 2)), serve(Pretended()))
    assert said.exit_code == 2
    assert "is not a SGLang server: it has no /model_info" in said.stderr


def test_the_former_names_of_the_pages_are_asked_for_too(serve):
    missing = [lambda h: h.answer(404, {}), lambda h: h.answer(200, Pretended().model)] * 2
    pretended = Pretended(before=missing)
    about = Server(serve(pretended), None, 5, print).about()
    assert [path for path, _, _ in pretended.asked] == [
        *("/model_info", "/get_model_info"),
        *("/server_info", "/get_server_info"),
    ]
    assert about.model == "m"


def test_an_embedding_model_generates_nothing(serve):
    said = run(serve(Pretended(model={"model_path": "e5", "is_generation": False})), serve(Pretended()))
    assert said.exit_code == 2
    assert "generates no text: 'e5'" in said.stderr


def test_other_models_and_other_tokenizers_are_refused_by_name(serve):
    model = {"model_path": "llama", "is_generation": True, "model_type": "llama"}
    said = run(serve(Pretended()), serve(Pretended(model=model)), "--json")
    assert said.exit_code == 2
    assert json.loads(said.stdout)["summary"].startswith("other model: ")
    said = run(serve(Pretended()), serve(Pretended(offset=1)))
    assert said.exit_code == 2
    assert "other tokenizer: " in said.stderr


@pytest.mark.parametrize("trouble", ["busy", "reset", "half"])
def test_a_server_that_is_busy_or_breaks_off_is_asked_again(serve, trouble: str):
    pauses: list[float] = []
    told: list[str] = []
    pretended = Pretended(before=[getattr(pretended_server, trouble)] * 3)
    server = Server(serve(pretended), None, 5, told.append, pauses.append)
    assert server.about().software == "SGLang 0.5.23"
    assert server.requests == 5
    assert pauses == ([2.0] * 3 if trouble == "busy" else [0.01, 0.02, 0.04])
    assert len(told) == 3


def test_a_server_that_stays_busy_is_given_up(serve):
    pretended = Pretended(before=[pretended_server.busy] * 9)
    server = Server(serve(pretended), None, 5, lambda text: None, lambda seconds: None)
    with pytest.raises(ServerError, match="HTTP 503, 5 times"):
        server.about()
    assert len(pretended.asked) == 5


def test_a_slow_drip_ends_at_the_deadline(serve):
    began = time.monotonic()
    server = Server(serve(Pretended(before=[pretended_server.slow])), None, 0.2, print)
    with pytest.raises(ServerError, match=r"within 0.2 s"):
        server.about()
    assert time.monotonic() - began < 3


def test_ctrl_c_ends_it_at_once_with_its_code(serve):
    pretended = Pretended(before=[pretended_server.slow])
    words = [sys.executable, "-m", "sglang_fl", "compare", serve(pretended), "http://127.0.0.1:9"]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    # Whoever runs these tests in the background has Ctrl-C ignored, which a process inherits.
    process = subprocess.Popen(
        words,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    with process:
        deadline = time.monotonic() + 60
        while not pretended.asked and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    assert pretended.asked
    assert process.returncode == 130
    assert "Traceback" not in errors


# The key.


@pytest.mark.parametrize("way", ["option", "variable"])
def test_the_key_is_sent_and_never_shown(serve, monkeypatch, way: str):
    words = ["--api-key", SECRET] if way == "option" else []
    if way == "variable":
        monkeypatch.setenv("SGLANG_FL_API_KEY", SECRET)
        assert unknown_variables() == []
    monkeypatch.setattr(sys, "argv", ["sglang-fl", "compare", *words])
    locked = Pretended(key=SECRET)
    said = run(serve(locked), serve(Pretended(key=SECRET)), *SHORT_PROMPTS, *words)
    assert said.exit_code == 0, said.output
    assert SECRET not in said.output
    assert {headers["Authorization"] for _, headers, _ in locked.asked} == {f"Bearer {SECRET}"}


def test_each_server_can_have_a_key_of_its_own(serve):
    one, other = Pretended(key="first-key"), Pretended(key="second-key")
    keys = ("--api-key", "first-key", "--api-key", "second-key")
    assert run(serve(one), serve(other), *SHORT_PROMPTS, *keys).exit_code == 0


@pytest.mark.parametrize("as_json", [(), ("--json",)])
def test_a_wrong_key_is_refused_and_not_shown_though_the_server_repeats_it(serve, monkeypatch, as_json):
    monkeypatch.setattr(sys, "argv", ["sglang-fl", "compare", "--api-key", SECRET])
    said = run(serve(Pretended(key="another")), serve(Pretended()), "--api-key", SECRET, *as_json)
    assert said.exit_code == 2
    assert "refuses (HTTP 401). Give its key: --api-key KEY" in said.output
    assert SECRET not in said.output


def test_the_key_does_not_follow_a_redirect(serve):
    elsewhere = Pretended()
    leads = Pretended(before=[lambda h: h.answer(307, b"", Location=address)])
    address = serve(elsewhere)
    assert run(serve(leads), serve(Pretended()), "--api-key", SECRET).exit_code == 2
    assert elsewhere.asked == []


# What is written wrongly.


@pytest.mark.parametrize(
    ("address", "asked"),
    [
        ("http://h:30000", "http://h:30000"),
        ("http://h:30000/", "http://h:30000"),
        ("https://h/v1/", "https://h"),
        ("http://[::1]:30000/v1", "http://[::1]:30000"),
        ("http://h/gateway/v1", "http://h/gateway"),
    ],
)
def test_an_address_is_taken_as_it_is_meant(address: str, asked: str):
    assert checked_address(address) == asked


@pytest.mark.parametrize(
    "address",
    [
        "",
        "h:30000",
        "127.0.0.1:30000",
        "ftp://h",
        "http://",
        "http://h:99999",
        "http://h:x",
        "http://h\n/",
        "http://h /",
    ],
)
def test_an_address_that_is_none_is_quoted(address: str):
    with pytest.raises(SettingsError, match=r"^URL '"):
        checked_address(address)


def test_a_password_in_an_address_is_refused_unseen():
    said = run("http://me:hunter22@h:1", "http://h:2")
    assert said.exit_code == 2
    assert "Use --api-key" in said.stderr
    assert "hunter22" not in said.output


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("http://h:1",), "give a second URL, or --model FOLDER"),
        (("http://h:1", "http://h:2", "--model", "m"), "and not both"),
        (("http://h:1", "http://h:2", "--timeout", "0"), "--timeout 0"),
        (("http://h:1", "http://h:2", "--timeout", "nan"), "--timeout nan"),
        (("http://h:1", "http://h:2", "--api-key", "a b"), "--api-key: empty, or with characters"),
        (("http://h:1", "http://h:2", *("--api-key", "k") * 3), "at most two"),
        (("http://h:1", "http://h:2", "--prompts", "/nonexistent"), "--prompts '/nonexistent': No such file"),
        (("http://h:1", "http://h:2", *("--prompt", "p") * 65), "65 prompts: at most 64"),
    ],
)
@pytest.mark.parametrize("as_json", [(), ("--json",)])
def test_a_line_that_means_nothing_is_refused_before_anything_is_asked(words, message, as_json, fits):
    said = run(*words, *as_json)
    assert said.exit_code == 2
    if as_json:
        fits("compare", json.loads(said.stdout))
    assert message in (json.loads(said.stdout)["summary"] if as_json else said.stderr)


@pytest.mark.parametrize(
    ("text", "message"), [(b"\n \n", "no line of it has a text"), (b"\xff", "not UTF-8")]
)
def test_a_file_without_prompts_is_refused(tmp_path: Path, text: bytes, message: str):
    (tmp_path / "p").write_bytes(text)
    said = run("http://h:1", "http://h:2", "--prompts", tmp_path / "p")
    assert said.exit_code == 2
    assert message in said.stderr


def test_prompts_of_a_file_are_asked_for_beside_the_others(serve, tmp_path: Path):
    (tmp_path / "p").write_text("from a file\n\nand another\n")
    pretended = Pretended()
    said = run(serve(pretended), serve(Pretended()), "--prompts", tmp_path / "p", "--prompt", "from the line")
    assert said.exit_code == 0, said.output
    texts = [body["text"] for path, _, body in pretended.asked if path == "/generate" and "text" in body]
    assert texts[1:] == ["from the line", "from a file", "and another"]
    assert "nothing is known of long ones" in said.stdout


def test_a_prompt_that_is_too_long_for_the_server_is_refused(serve):
    small = {"version": "0.5.23", "dtype": "float32", "max_req_input_len": 60}
    said = run(serve(Pretended(server=small)), serve(Pretended()), "--prompt", "x" * 40)
    assert said.exit_code == 2
    assert "40 tokens, and the servers take 12" in said.stderr
    pretended = Pretended(server=small)
    assert run(serve(pretended), serve(Pretended())).exit_code == 0
    sent = [body["input_ids"] for _, _, body in pretended.asked if body and "input_ids" in body]
    assert max(len(ids) for ids in sent if not isinstance(ids[0], list)) <= 60


@pytest.mark.parametrize("config", [None, "{", "{}", "[]"])
def test_a_folder_that_is_no_checkpoint_is_named(serve, tmp_path: Path, config: str | None):
    if config is not None:
        (tmp_path / "config.json").write_text(config)
    said = run(serve(Pretended()), "--model", tmp_path)
    assert said.exit_code == 2
    assert f"--model '{tmp_path}'" in said.stderr
    assert "Name the folder of a checkpoint" in said.stderr
