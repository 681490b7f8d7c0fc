"""A SGLang server as its client sees it: what it is, and what it answers. One request at a time.

A busy server (429, 502, 503, 504) and a broken connection are asked again, a few times, later each time. What
is refused, not understood or too late is an error that names the server.
"""

import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

from sglang_fl.compare.answers import Answer, answer_of
from sglang_fl.compare.questions import Question
from sglang_fl.errors import ServerError, SettingsError, quoted
from sglang_fl.logs.redaction import redacted

__all__ = ["About", "Server", "checked_address", "checked_key"]

#: Likeliest tokens that are asked for at each place.
TOP = 5
ATTEMPTS = 5
#: Seconds before the second attempt; twice as long before each later one.
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
BUSY = (429, 502, 503, 504)
#: Bytes of an answer that are read at most.
LARGEST = 256 * 2**20
#: Old and new names of SGLang's two pages about itself; 0.5.15 to 0.5.23 have both.
MODEL_INFO, SERVER_INFO = ("/model_info", "/get_model_info"), ("/server_info", "/get_server_info")


@dataclass(frozen=True)
class About:
    """What a side is.

    Parameters
    ----------
    title : how it is called in messages: its address, or the folder of a checkpoint
    model : the model's path, as the side knows it
    architecture : the type of the model: ``qwen2``; empty where the side does not tell
    software : ``SGLang 0.5.23``
    dtype : ``bfloat16``, ``auto`` ...; empty where the side does not tell
    quantization : of the weights or of the KV cache; empty: none, or not told
    longest : tokens that a request may hold; None: not told
    has_cache : whether it keeps prefixes
    """

    title: str
    model: str
    architecture: str
    software: str
    dtype: str
    quantization: str = ""
    longest: int | None = None
    has_cache: bool = True


class _NotFoundError(Exception):
    """There is no such page."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: the key would be sent to whom it leads to."""

    def redirect_request(self, *_: Any) -> None:
        """Return None: urllib raises the redirect as an error then."""


def checked_address(text: str) -> str:
    """Return a server's address without ``/`` or ``/v1`` behind it.

    Raises
    ------
    SettingsError : it is none
    """
    example = "Give the address of a server: http://HOST:PORT"
    try:
        parts = urllib.parse.urlsplit(text)
        is_whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError as error:
        raise SettingsError(f"URL {quoted(text)}: {error}. {example}") from None
    if not is_whole or not text.isascii() or not text.isprintable() or " " in text:
        raise SettingsError(f"URL {quoted(text)}: no such address can be asked. {example}")
    if parts.username is not None or parts.query or parts.fragment:
        raise SettingsError(f"URL {quoted(text)}: a name, password or query is not sent. Use --api-key")
    return text.rstrip("/").removesuffix("/v1").rstrip("/")


def checked_key(key: str) -> str:
    """Return an API key that can be a header.

    Raises
    ------
    SettingsError : it is empty, or has characters that no header can hold; the message does not show it
    """
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise SettingsError("--api-key: empty, or with characters that no HTTP header can hold")
    return key


class Server:
    """A server.

    Parameters
    ----------
    address : as ``checked_address`` returns it
    key : sent with each request, or None
    timeout : seconds until an answer must be there
    say : told why something is asked again
    pause : waits for a number of seconds
    """

    def __init__(
        self,
        address: str,
        key: str | None,
        timeout: float,
        say: Callable[[str], None],
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self.address = address
        self.requests = 0
        self._headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if key is not None:
            self._headers["Authorization"] = f"Bearer {key}"
        self._timeout, self._say, self._pause = timeout, say, pause
        self._opener = urllib.request.build_opener(_NoRedirect)

    def about(self) -> About:
        """Ask the server what it is.

        Raises
        ------
        ServerError : it cannot be reached, refuses, or is no SGLang server that generates text
        """
        model = self._page(MODEL_INFO)
        if model is None or not isinstance(model.get("model_path"), str) or "is_generation" not in model:
            raise self._error(f"is not a SGLang server: it has no {MODEL_INFO[0]} as SGLang's is")
        if not model["is_generation"]:
            raise self._error(f"generates no text: {quoted(model['model_path'])} is another kind of model")
        server = self._page(SERVER_INFO) or {}
        formats = (server.get("quantization"), server.get("kv_cache_dtype"))
        longest = server.get("max_req_input_len")
        return About(
            title=self.address,
            model=model["model_path"],
            architecture=str(model.get("model_type") or ""),
            software=f"SGLang {server.get('version') or 'of a release that it does not tell'}",
            dtype=str(server.get("dtype") or ""),
            quantization=", ".join(str(name) for name in formats if name not in (None, "", "auto")),
            longest=longest if isinstance(longest, int) and longest > 0 else None,
            has_cache=not server.get("disable_radix_cache"),
        )

    def tokens_of(self, text: str) -> tuple[int, ...]:
        """Return a text's tokens, by the server's tokenizer.

        Raises
        ------
        ServerError : as ``ask``; also where the server has no tokenizer
        """
        (row,) = self._generate({"text": text}, 0, 1, 1)
        try:
            return tuple(int(entry[1]) for entry in row["meta_info"]["input_token_logprobs"])
        except (KeyError, TypeError, ValueError, IndexError):
            raise self._unreadable(row) from None

    def ask(self, question: Question) -> tuple[Answer, ...]:
        """Return an answer for each sequence of a question.

        Raises
        ------
        ServerError : no answer, a refusal, or one of another shape
        """
        ids = [list(sequence) for sequence in question.sequences]
        body = {"input_ids": ids if len(ids) > 1 else ids[0]}
        rows = self._generate(body, question.start, question.steps, len(ids))
        answers = []
        for row in rows:
            try:
                answers.append(answer_of(row))
            except (KeyError, TypeError, ValueError, IndexError):
                raise self._unreadable(row) from None
        return tuple(answers)

    def _generate(self, what: dict[str, Any], start: int, steps: int, number: int) -> list[dict[str, Any]]:
        # An end of text would be another number of steps on each side; the likeliest token is no sampling.
        sampling = {"temperature": 0, "max_new_tokens": steps, "ignore_eos": True}
        body = {
            **what,
            "sampling_params": sampling,
            "return_logprob": True,
            "logprob_start_len": start,
            "top_logprobs_num": TOP,
        }
        try:
            rows = self._request("/generate", body)
        except _NotFoundError:
            raise self._error("is not a SGLang server: it has no /generate") from None
        rows = rows if isinstance(rows, list) else [rows]
        if len(rows) != number or not all(isinstance(row, dict) for row in rows):
            raise self._unreadable(rows)
        for row in rows:
            reason = (row.get("meta_info") or {}).get("finish_reason")
            if isinstance(reason, dict) and reason.get("type") == "abort":
                raise self._error(f"gave a request up: {quoted(str(reason.get('message')))}")
        return rows

    def _page(self, names: tuple[str, ...]) -> dict[str, Any] | None:
        for name in names:
            try:
                page = self._request(name)
            except _NotFoundError:
                continue
            return page if isinstance(page, dict) else None
        return None

    def _request(self, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.address + path, data, self._headers)
        for attempt in range(1, ATTEMPTS + 1):
            self.requests += 1
            try:
                return self._parsed(path, self._exchanged(request))
            except urllib.error.HTTPError as error:
                reason, wait = f"HTTP {error.code}", error.headers.get("Retry-After", "")
                with error:
                    if error.code not in BUSY:
                        raise self._refusal(path, error) from None
            except (http.client.IncompleteRead, ConnectionResetError, BrokenPipeError) as error:
                reason, wait = f"the connection broke off ({type(error).__name__})", ""
            except http.client.HTTPException as error:
                raise self._error(f"does not speak HTTP: {quoted(str(error))}") from None
            except OSError as error:
                raise self._unreachable(error) from None
            if attempt < ATTEMPTS:
                seconds = float(wait) if wait.isdecimal() else FIRST_PAUSE * 2 ** (attempt - 1)
                seconds = min(seconds, LONGEST_PAUSE)
                self._say(f"{self.address}: {reason}; asked again in {seconds:g} s")
                self._pause(seconds)
        raise self._error(f"{path}: {reason}, {ATTEMPTS} times. Is it overloaded, or did it end?")

    def _exchanged(self, request: urllib.request.Request) -> bytes:
        deadline = time.monotonic() + self._timeout
        try:
            with self._opener.open(request, timeout=self._timeout) as answer:
                return _read(answer, deadline)
        except urllib.error.HTTPError:
            raise
        except urllib.error.URLError as error:  # what is inside tells whether it is worth another attempt
            raise error.reason if isinstance(error.reason, OSError) else error from None

    def _parsed(self, path: str, data: bytes) -> Any:
        try:
            return json.loads(data)
        except ValueError:
            head = data[:80].decode(errors="replace")
            raise self._error(f"is not a SGLang server, or broke off: {path} is no JSON: {head!r}") from None

    def _refusal(self, path: str, error: urllib.error.HTTPError) -> Exception:
        if error.code in (404, 405):
            return _NotFoundError(path)
        if error.code in (401, 403):
            return self._error(
                f"refuses (HTTP {error.code}). Give its key: --api-key KEY, or the variable SGLANG_FL_API_KEY"
            )
        if error.code in range(300, 400):
            return self._error(f"leads elsewhere (HTTP {error.code}). Give the address that it leads to")
        return self._error(f"refuses {path} (HTTP {error.code}): {quoted(_text_of(error))}")

    def _unreachable(self, error: OSError) -> ServerError:
        if isinstance(error, TimeoutError):
            return self._error(f"gave no answer within {self._timeout:g} s; --timeout SECONDS waits longer")
        return self._error(f"cannot be reached: {error.strerror or error}")

    def _unreadable(self, row: object) -> ServerError:
        return self._error(
            f"answers otherwise than SGLang's /generate with log-probabilities: {quoted(str(row))}"
        )

    def _error(self, what: str) -> ServerError:
        return ServerError(redacted(f"{self.address} {what}"))


def _read(answer: http.client.HTTPResponse, deadline: float) -> bytes:
    """Return the body; a link that lets a byte through now and then must not hold us for ever."""
    data = bytearray()
    while part := answer.read1(2**16):
        data += part
        if time.monotonic() > deadline:
            raise TimeoutError
        if len(data) > LARGEST:
            raise OSError(f"its answer is larger than {LARGEST >> 20} MiB")
    length = answer.headers.get("Content-Length", "")
    if length.isdecimal() and len(data) < int(length):  # ``read1`` does not tell
        raise http.client.IncompleteRead(bytes(data), int(length) - len(data))
    return bytes(data)


def _text_of(error: IO[bytes]) -> str:
    """Return what a refusal says: SGLang writes it as ``{"error": {"message": ...}}``."""
    try:
        text = error.read(4096).decode(errors="replace")
    except (OSError, http.client.HTTPException):
        return ""
    try:
        told = json.loads(text)["error"]
        return str(told["message"] if isinstance(told, dict) else told)
    except (ValueError, KeyError, TypeError):
        return text.strip()
