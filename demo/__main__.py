"""Make a tiny model, serve it with the real SGLang, ask one question, show what ran it."""

import argparse
import os
import signal
import sys
import tempfile
import time
from pathlib import Path

from demo.server import ServerError, serve
from demo.tiny_model import make_tiny_model

#: ``--max-total-tokens`` keeps the KV cache small; all else is the ordinary launch line.
LAUNCH = ("--disable-piecewise-cuda-graph", "--max-total-tokens", "4096")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="nox -s demo --", description=__doc__)
    parser.add_argument("--port", type=int, help="the server's port; default: any free one")
    parser.add_argument("--timeout", type=float, default=300, help="seconds until it must be ready")
    parser.add_argument(
        "--simulated", metavar="VENDOR", help="serve on a simulated chip: mlu or ascend; default: the CPU"
    )
    parser.add_argument("--prompt", default="Which chip are you running on?")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep model and logs in this folder")
    return parser.parse_args()


def _say(text: str) -> None:
    print(text, flush=True)  # noqa: T201 - a demo talks


def _show_progress(passed: float) -> None:
    if sys.stdout.isatty():
        print(f"\r  starting, {passed:.0f} s ", end="", flush=True)  # noqa: T201
    elif int(passed * 2) % 20 == 0:
        _say(f"  starting, {passed:.0f} s")


def _run(arguments: argparse.Namespace, folder: Path) -> None:
    _say(f"Making a tiny Qwen2 model in {folder}")
    model = make_tiny_model(folder / "model")
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
                "model": "tiny",
                "messages": [{"role": "user", "content": arguments.prompt}],
                "max_tokens": 16,
                "temperature": 0,
            },
        )
        _say(f"\nQuestion: {arguments.prompt}")
        _say(f"Answer (of random weights): {answer['choices'][0]['message']['content']!r}")
        _say("\nWhat ran it (sort -u of the dispatch log):")
        for line in sorted(set(dispatch_log.read_text().splitlines())):
            _say(f"  {line}")
    _say("\nThe server has stopped.")


def main() -> int:
    """Run the demo; return the exit code."""
    arguments = _arguments()
    # A terminated demo must still stop its server.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
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
    sys.exit(main())
