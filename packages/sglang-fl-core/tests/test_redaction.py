"""What is printed or written shows no secret."""

import json
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sglang_fl.bisect.reproduction import broken, make_folder
from sglang_fl.cli import app
from sglang_fl.logs.redaction import is_secret, redacted

SECRET = "sk-5f3a-0192"


@pytest.mark.parametrize(
    "name",
    ["HF_TOKEN", "OPENAI_API_KEY", "aws_secret_access_key", "PGPASSWORD", "GIT_CREDENTIALS", "MY_PASSWD"],
)
def test_a_secret_of_the_environment_is_hidden_wherever_it_stands(name: str, monkeypatch):
    monkeypatch.setenv(name, SECRET)
    assert is_secret(name)
    assert redacted(f"cannot log in with {SECRET!r}") == "cannot log in with '***'"
    assert redacted({"rows": [(SECRET, 3)], SECRET: None}) == {"rows": [("***", 3)], "***": None}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "EMPTY",
        "none",
        "None",
        "null",
        "test",
        "dummy",
        "norm",
        "changeme",
        "xxxxxxxx",
        "NOT-NEEDED",
        "****",
    ],
)
def test_a_word_in_the_place_of_a_secret_is_none(text: str, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", text)
    monkeypatch.setattr(sys, "argv", ["sglang-fl", "bisect", "--api-key", text])
    sentence = f"EMPTY test: none of norm {text} is a dummy"
    assert redacted(sentence) == sentence


def test_a_tokenizers_settings_are_no_secrets(monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    assert redacted("the answer is false") == "the answer is false"


@pytest.mark.parametrize(
    "words", [["--api-key", SECRET], [f"--admin-api-key={SECRET}"], ["--ssl-keyfile-password", SECRET]]
)
def test_a_secret_of_the_command_line_is_hidden(words: list[str], monkeypatch):
    monkeypatch.setattr(sys, "argv", ["sglang-fl", "bisect", *words, "--max-total-tokens", "2048"])
    assert redacted(f"arguments: {words}, 2048") == f"arguments: {words}, 2048".replace(SECRET, "***")


@pytest.mark.parametrize("who", ["user:pass-word", "ghp_123456"])
def test_credentials_in_an_address_are_hidden(who: str):
    assert redacted(f"see https://{who}@example.org/a@b") == "see https://***@example.org/a@b"
    assert redacted("see https://example.org/a@b") == "see https://example.org/a@b"


@pytest.mark.parametrize(("lines", "code"), [("[OOT-DISPATCH] RMSNorm → flagos(flagos)\n", 0), ("", 2)])
def test_a_report_shows_no_secret(tmp_path: Path, monkeypatch, lines: str, code: int):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    log = tmp_path / "dispatch.log"
    log.write_text(f"{lines}Authorization: Bearer {SECRET}\n")
    for form in ([], ["--json"]):
        said = CliRunner().invoke(app, ["report", "--dispatch", str(log), *form])
        assert said.exit_code == code, said.output
        assert "Bearer ***" in said.output
        assert SECRET not in said.output


def test_the_folder_of_a_bisection_shows_no_secret_and_is_its_owners_alone(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", SECRET)
    folder = make_folder(tmp_path / "report")
    verdict = broken(RuntimeError(f"401 for {SECRET}"), folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    written = {path.name: path.read_text() for path in folder.iterdir()}
    assert written.keys() == {"error.txt", "verdict.json"}
    assert json.loads(written["verdict.json"])["summary"] == "RuntimeError: 401 for ***"
    assert verdict.folder == str(folder)
    assert all(SECRET not in text for text in written.values()), written


def test_the_printed_plan_shows_no_secret(monkeypatch, tmp_path):
    (tmp_path / "config.json").write_text('{"vocab_size": 8}')
    line = ["bisect", "--plan", "--model", str(tmp_path), "--api-key", SECRET]
    monkeypatch.setattr(sys, "argv", ["sglang-fl", *line])
    said = CliRunner().invoke(app, line)
    assert said.output.count("--api-key '***'") + said.output.count("--api-key ***") == 2
    assert SECRET not in said.output
