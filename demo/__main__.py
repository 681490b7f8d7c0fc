"""Serve a chat model of 135 million parameters with the real SGLang, ask it, show what ran it."""

import argparse
import contextlib
import json
import os
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from demo.chat_model import ModelError, make_chat_model
from demo.server import Server, ServerError, serve
from demo.tiny_model import make_tiny_model

#: ``--max-total-tokens`` keeps the KV cache small; all else is the ordinary launch line.
LAUNCH = ("--max-total-tokens", "4096")
QUESTION = "What is the capital of France? Answer in one sentence."


def parse(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the arguments of a command line; default: that of this process."""
    parser = argparse.ArgumentParser(prog="nox -s demo --", description=__doc__)
    parser.add_argument("--port", type=int, help="the server's port; default: any free one")
    parser.add_argument("--timeout", type=float, default=300, help="seconds until it must be ready")
    parser.add_argument(
        "--simulated", metavar="VENDOR", help="serve on a simulated chip: mlu or ascend; default: the CPU"
    )
    parser.add_argument(
        "--with", metavar="DIR", help="a vendor package to install as well, for --simulated; read by nox"
    )
    parser.add_argument(
        "--tiny", action="store_true", help="a tiny model of random weights, made on the spot"
    )
    parser.add_argument("--prompt", default=QUESTION)
    parser.add_argument("--serve", action="store_true", help="go on serving after the answer, until Ctrl-C")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep the logs, and a tiny model, in DIR")
    return parser.parse_args(words)


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - a demo talks


def _show_progress(passed: float) -> None:
    if sys.stdout.isatty():
        print(f"\r  starting, {passed:.0f} s ", end="", flush=True)  # noqa: T201
    elif int(passed * 2) % 20 == 0:
        _say(f"  starting, {passed:.0f} s")


def _model(arguments: argparse.Namespace, folder: Path) -> tuple[Path, bool]:
    """Return the checkpoint to serve, and whether its answers mean anything."""
    if not (arguments.tiny or arguments.simulated):
        try:
            return make_chat_model(say=_say), True
        except ModelError as error:
            _say(f"{error}. A tiny model of random weights takes its place: its answer is noise.")
    _say(f"Making a tiny Qwen2 model in {folder}")
    return make_tiny_model(folder / "model"), False


def _run(arguments: argparse.Namespace, folder: Path) -> None:
    model, is_chat = _model(arguments, folder)
    dispatch_log = folder / "dispatch.log"
    dispatch_log.unlink(missing_ok=True)
    _say(f"Starting: python -m sglang.launch_server --model-path {model} {' '.join(LAUNCH)}")
    start = time.monotonic()
    with serve(
        model,
        folder / "server.log",
        arguments=LAUNCH,
        environment={
            "SGLANG_FL_DISPATCH_LOG": str(dispatch_log),
            "SGLANG_FL_SIMULATED": arguments.simulated or "",
            "CUDA_VISIBLE_DEVICES": "",
        },
        port=arguments.port,
        timeout=arguments.timeout,
        progress=_show_progress,
    ) as server:
        _say(f"\nReady after {time.monotonic() - start:.0f} s at {server.url}")
        answer = server.post(
            "/v1/chat/completions",
            {
                "model": model.name,
                "messages": [{"role": "user", "content": arguments.prompt}],
                "max_tokens": 64 if is_chat else 16,
                "temperature": 0,
            },
        )
        _say(f"\nQuestion: {arguments.prompt}")
        text = answer["choices"][0]["message"]["content"]
        _say(f"Answer: {text.strip()}" if is_chat else f"Answer (of random weights): {text!r}")
        _say("\nWhat ran it (sort -u of the dispatch log):")
        for line in sorted(set(dispatch_log.read_text().splitlines())):
            _say(f"  {line}")
        if arguments.serve:
            _go_on(server, model)
    _say("\nThe server has stopped.")
    _say(_what_next(arguments, model))


def _go_on(server: Server, model: Path) -> None:
    """Tell how to ask the server, and wait for Ctrl-C."""
    _say("\nAsk it more, from another terminal; Ctrl-C ends it:")
    _say(f"  {_curl(server.url, model)}")
    with contextlib.suppress(KeyboardInterrupt):
        server.wait()


def _curl(url: str, model: Path) -> str:
    body = {"model": model.name, "messages": [{"role": "user", "content": "Name three fruits."}]}
    words = ["curl", "-s", f"{url}/v1/chat/completions", "-H", "Content-Type: application/json"]
    return shlex.join([*words, "-d", json.dumps(body)])


def _what_next(arguments: argparse.Namespace, model: Path) -> str:
    """Return the last lines: how to ask more, and what to read."""
    command = _shown(Path(sys.executable).with_name("sglang-fl"))
    simulated = f"SGLANG_FL_SIMULATED={arguments.simulated} " if arguments.simulated else ""
    options = "".join(
        f" {name} {shlex.quote(value)}"
        for name, value in (("--simulated", arguments.simulated), ("--with", getattr(arguments, "with")))
        if value
    )
    return f"""
Next
  keep it serving, and ask it yourself:   python3 -m nox -s demo --{options} --serve
  what would run each op, and why:        {simulated}{command} ops; {simulated}{command} why rms_norm
  the model, for other commands:          {_shown(model)}
  read: README.md (install it), docs/index.md (all pages), docs/debugging.md (when answers look wrong)"""


def _shown(path: Path) -> str:
    """Return a path as short as it can be written here."""
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def run(arguments: argparse.Namespace) -> int:
    """Run the demo; return the exit code."""
    try:
        if arguments.keep:
            arguments.keep.mkdir(parents=True, exist_ok=True)
            _run(arguments, arguments.keep.resolve())
        else:
            with tempfile.TemporaryDirectory(prefix="sglang-fl-demo-") as folder:
                _run(arguments, Path(folder))
    except ServerError as error:
        print(f"\nThe demo failed: {error}", file=sys.stderr)  # noqa: T201
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted; the server has stopped.", file=sys.stderr)  # noqa: T201
        return 128 + signal.SIGINT
    return 0


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # all is made here; say so to the libraries
    # A terminated demo must still stop its server.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.exit(run(parse()))
