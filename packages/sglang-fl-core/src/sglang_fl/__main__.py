"""The command line from its first moment: whatever goes wrong is one line and a documented exit code.

0 well, 1 a problem was found, 2 no answer (wrong input, a broken installation, no room for the answer),
130 Ctrl-C. A traceback is for developers: ``python -X dev -m sglang_fl`` shows it.
"""

import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable
from typing import Any

__all__ = ["main"]

BROKEN, INTERRUPTED = 2, 130


def main() -> None:
    """Run ``sglang-fl``; never returns."""
    _print_whatever_comes()
    code: Any = 0
    try:
        _app()()
    except SystemExit as ended:
        module = _who_ended(ended)
        code = ended.code if module is None else _tell(RuntimeError(f"{module} ended it: {ended!r}"))
    except KeyboardInterrupt:
        code = INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the last place: what else would be a traceback
        code = _tell(error)
    raise SystemExit(_flushed(code))


def _who_ended(ended: SystemExit) -> str | None:
    """Return the module of a foreign package that ended this process while it was imported, or None."""
    trace = ended.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = str(trace.tb_frame.f_globals.get("__name__", "")) if trace else ""
    is_ours = module.partition(".")[0] in ("sglang_fl", "typer", "click", "rich", "__main__", "")
    return None if is_ours else module


def _app() -> Callable[[], Any]:
    """Import the command line, which imports PyTorch and whatever PyTorch loads."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # a shell may have it ignored
        from sglang_fl.cli import app

        return app
    # Nothing is half done yet, and what is being imported may print the exception that Ctrl-C raises.
    signal.signal(signal.SIGINT, lambda *_: os._exit(INTERRUPTED))
    try:
        from sglang_fl.cli import app
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    return app


def _print_whatever_comes() -> None:
    """Escape what a terminal's encoding lacks, rather than fail."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def _tell(error: Exception) -> int:
    from sglang_fl.errors import SglangFlError, printable
    from sglang_fl.logs.redaction import redacted

    if sys.flags.dev_mode:
        traceback.print_exception(error)
    text = str(error) if isinstance(error, SglangFlError) else f"{type(error).__name__}: {error}"
    if isinstance(error, OSError) and error.errno == errno.ENOSPC and error.filename is None:
        text = f"the answer cannot be written: {error.strerror}"
    if error.__cause__ is not None:
        text = f"{text.rstrip('.')}: {error.__cause__}{_device_backend(text)}"
    _say(printable(redacted(f"sglang-fl: {' '.join(text.split())}")))
    return BROKEN


def _device_backend(text: str) -> str:
    """Name the package whose device PyTorch could not add; its error names the entry point alone."""
    from importlib.metadata import entry_points

    for point in entry_points(group="torch.backends"):
        if f"backend extension: {point.name}." in text and point.dist:
            return f" (of the package {point.dist.name})"
    return ""


def _say(line: str) -> None:
    try:
        print(line, file=sys.stderr)  # noqa: T201 - the one thing that is left to do
    except OSError:  # nobody can read it
        return


def _flushed(code: Any) -> Any:
    """Bring out what was printed; what cannot be written is reported here, and not by Python at its end."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:  # the reader has what it wanted: ``| head``
        code = code or 0
    except OSError as error:
        _say(f"sglang-fl: the answer cannot be written: {error.strerror or error}")
        code = BROKEN
    else:
        return code
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # Python flushes once more
    return code


if __name__ == "__main__":
    main()
