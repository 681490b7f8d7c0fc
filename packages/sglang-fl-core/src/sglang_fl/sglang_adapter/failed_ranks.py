"""What a command that runs an engine in its own process does when one of SGLang's processes fails.

SGLang tells the process that has started it by SIGQUIT, which then kills all of them and itself, so that the
command would end without a word; and while it waits for the answer to a remote call it would wait for ever.
Here it ends by ``SystemExit`` instead; whoever runs the engine meets that, and finds in SGLang's log what has
happened.
"""

import asyncio
import gc
import signal
import threading
from typing import Any

__all__ = ["close_sockets", "end_no_more", "end_while_running", "end_while_starting"]

FAILED = 1


def end_while_starting(arguments: Any) -> None:
    """Have the start of an engine end by ``SystemExit`` where a process of it fails.

    Parameters
    ----------
    arguments : SGLang's ``ServerArgs``
    """
    name = "custom_sigquit_handler"
    try:
        setattr(arguments, name, _end)
    except AttributeError:
        # SGLang 0.5.16 to 0.5.19 seals the arguments as they are parsed, and then starts an engine by them.
        object.__setattr__(arguments, name, _end)


def end_while_running(engine: Any) -> None:
    """Have what is asked of an engine end likewise; to be called before the first request.

    With that SGLang puts a handler in the place of the one for the start, which is called while its event
    loop runs, and not while somebody waits for the answer to a remote call.

    Parameters
    ----------
    engine : ``sglang.Engine``
    """
    manager = engine.tokenizer_manager
    own = manager.signal_handler_class

    class EndingHandler(own):  # type: ignore[valid-type, misc] # SGLang has no types
        def __init__(self, manager: Any) -> None:
            super().__init__(manager)
            asyncio.get_running_loop().call_soon(signal.signal, signal.SIGQUIT, _end)

        def running_phase_sigquit_handler(self, *_: Any) -> None:
            _end()

    manager.signal_handler_class = EndingHandler


def end_no_more() -> None:
    """Take no notice of what fails from now on: all is being ended, and each process tells of it."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGQUIT, signal.SIG_IGN)


def _end(*_: Any) -> None:
    end_no_more()
    raise SystemExit(FAILED)


def close_sockets() -> None:
    """Close the sockets of an engine that is gone: Python would wait for what they still have to send."""
    import zmq

    for each in gc.get_objects():
        # Its type, since an object that is asked itself may answer with a warning in the engine's log.
        if issubclass(type(each), zmq.Context) and not each.closed:
            each.destroy(linger=0)
