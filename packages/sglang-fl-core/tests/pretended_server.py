"""A server that speaks SGLang's HTTP interface; its model is a hash of the last three tokens."""

import json
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["Pretended", "serving"]

VOCABULARY = 64

#: Given a request, the index of a sequence in it and a place: what is added to the log-probabilities there.
Spoil = Callable[[dict[str, Any], int, int], float]


def right(request: dict[str, Any], index: int, place: int) -> float:
    return 0.0


@dataclass
class Pretended:
    """How a server behaves.

    Parameters
    ----------
    spoil : what is wrong with its numbers
    model : what it says of its model
    server : what it says of itself
    key : without it, it refuses
    offset : added to each token id that its tokenizer makes
    before : does something in place of the first answers, as long as there is one
    after : of a row, what is sent in its place
    asked : the paths, headers and bodies that it has got
    """

    spoil: Spoil = right
    model: dict[str, Any] = field(
        default_factory=lambda: {"model_path": "m", "is_generation": True, "model_type": "hash"}
    )
    server: dict[str, Any] = field(default_factory=lambda: {"version": "0.5.23", "dtype": "float32"})
    key: str | None = None
    offset: int = 0
    before: list[Callable[[BaseHTTPRequestHandler], None]] = field(default_factory=list)
    after: Callable[[dict[str, Any]], dict[str, Any]] = lambda row: row
    asked: list[tuple[str, dict[str, str], Any]] = field(default_factory=list)

    def rows(self, body: dict[str, Any]) -> Any:
        if "text" in body:
            ids = [byte % (VOCABULARY - 1) + self.offset for byte in body["text"].encode()]
        else:
            ids = body["input_ids"]
        is_batch = isinstance(ids[0], list)
        texts = ids if is_batch else [ids]
        rows = [self.after(self.row(body, index, text)) for index, text in enumerate(texts)]
        return rows if is_batch else rows[0]

    def row(self, body: dict[str, Any], index: int, text: list[int]) -> dict[str, Any]:
        start, steps = body["logprob_start_len"], body["sampling_params"]["max_new_tokens"]
        given, tops = [[None, text[start], None]], [None]
        for place in range(start + 1, len(text)):
            numbers = self.numbers(text[:place], self.spoil(body, index, place))
            given.append([numbers[text[place] % VOCABULARY], text[place], None])
            tops.append(likeliest(numbers))
        generated, generated_tops = [], []
        for step in range(steps):
            numbers = self.numbers(text, self.spoil(body, index, -1 - step))
            top = likeliest(numbers)
            text = [*text, top[0][1]]
            generated.append(top[0])
            generated_tops.append(top)
        about = {"input_token_logprobs": given, "input_top_logprobs": tops, "cached_tokens": start}
        about |= {"output_token_logprobs": generated, "output_top_logprobs": generated_tops}
        return {"text": "", "meta_info": {**about, "finish_reason": {"type": "length"}}}

    def numbers(self, before: list[int], added: float) -> list[float]:
        seed = zlib.crc32(bytes(token % 256 for token in before[-3:]))
        # In steps of 1/64, so that sums are exact. ``added`` moves every other token, as a fault would.
        return [
            -1 - (seed * (token + 7) * 2654435761 % 2**32 >> 22) / 64 + added * (token % 2)
            for token in range(VOCABULARY)
        ]


def likeliest(numbers: list[float]) -> list[list[Any]]:
    order = sorted(range(VOCABULARY), key=lambda token: -numbers[token])[:5]
    return [[numbers[token], token, None] for token in order]


class Handler(BaseHTTPRequestHandler):
    pretended: Pretended

    def log_message(self, *arguments: Any) -> None:
        return

    def answer(self, code: int, data: Any, **headers: str) -> None:
        text = data if isinstance(data, bytes) else json.dumps(data).encode()
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_GET(self) -> None:
        self.respond(None)

    def do_POST(self) -> None:
        self.respond(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def respond(self, body: Any) -> None:
        this = self.pretended
        this.asked.append((self.path, dict(self.headers), body))
        if this.before:
            this.before.pop(0)(self)
        elif this.key and self.headers.get("Authorization") != f"Bearer {this.key}":
            self.answer(401, {"error": f"Unauthorized: {self.headers.get('Authorization')}"})
        elif self.path == "/model_info":
            self.answer(200, this.model)
        elif self.path == "/server_info":
            self.answer(200, this.server)
        elif self.path == "/generate":
            self.answer(200, this.rows(body))
        else:
            self.answer(404, {"detail": "Not Found"})


@contextmanager
def serving(pretended: Pretended) -> Iterator[str]:
    """Serve on a free port; yield the address."""
    handler = type("Handler", (Handler,), {"pretended": pretended})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


def busy(handler: BaseHTTPRequestHandler) -> None:
    handler.answer(503, {"error": "starting"}, Retry_After="2")


def reset(handler: BaseHTTPRequestHandler) -> None:
    """End the connection without a word."""
    handler.close_connection = True


def half(handler: BaseHTTPRequestHandler) -> None:
    """Send less than was announced."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100")
    handler.end_headers()
    handler.wfile.write(b'{"model_path": ')
    handler.close_connection = True


def slow(handler: BaseHTTPRequestHandler) -> None:
    """Let a byte through now and then."""
    handler.send_response(200)
    handler.end_headers()
    for _ in range(100):
        handler.wfile.write(b" ")
        time.sleep(0.05)


def truncated(handler: BaseHTTPRequestHandler) -> None:
    """Send JSON that ends too early, and no length."""
    handler.send_response(200)
    handler.end_headers()
    handler.wfile.write(b'{"model_path": "m", ')
    handler.close_connection = True
