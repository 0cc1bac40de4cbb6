"""A scripted loopback server that speaks the chat part of OpenAI's protocol, and fails on request.

In a test: `with Server(faults=0.3) as server:` gives `server.url` and `server.log`. As a process of its own:

    python tests/server.py --port 8901 --log requests.jsonl --faults 0.3 --seed 1 --rpm 600 --delay 0.05

A reply is a pure function of the request's body, and a fault of (seed, body, attempt), so any two runs against it see
the same. Each request is one JSON line in the log: `key` (SHA-256 of the body), `attempt` (from 0), `done` (what was
sent, or "abandoned": the client had gone before), `at` (seconds since 1970, after sending) and `model`.
"""

import argparse
import json
import math
import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from script import SCRIPTS, choice_of, digest, draw

# What may be done to a request. Those in PAID gave the client its reply: such a request must never be asked again.
ANSWERS = ("slow", "no_logprobs", "length", "content_filter", "filter_400")
FAULTS = ("429", "500", "503", "cut", "cut_body", "invalid_json", "empty_choices", "wrong_n", *ANSWERS)
PAID = frozenset({"answered", *ANSWERS})


class Server:
    """The scripted server.

    ``faults`` is the share of attempts that go wrong, each in one of ``kinds``. ``rpm`` answers 429 beyond that rate,
    with at most one second's worth at once. ``delay`` is the time that an answer takes, ``slow`` that of a slow body,
    in seconds. ``key`` is the only key accepted and ``models`` the only models known; None: any. ``ignores`` names
    fields of a body that the server takes no notice of, of ``n``, ``logprobs``, ``response_format``, ``seed`` and
    ``temperature``; without its seed no two sampled replies are alike, without its temperature no two at all.
    ``reply`` replaces the script: a function of the body.
    """

    def __init__(
        self,
        *,
        faults: float = 0.0,
        kinds: Collection[str] = FAULTS,
        seed: int = 0,
        rpm: float | None = None,
        delay: float = 0.0,
        slow: float = 0.3,
        retry_after: float = 0.1,
        key: str | None = None,
        models: Collection[str] | None = None,
        ignores: Collection[str] = (),
        script: str = "mutator_judge",
        reply: Callable[[Mapping[str, Any]], str] | None = None,
        port: int = 0,
        log_file: str | Path | None = None,
    ) -> None:
        self.faults, self.kinds, self.seed, self.rpm = faults, tuple(kinds), seed, rpm
        self.delay, self.slow, self.retry_after = delay, slow, retry_after
        self.key, self.models, self.ignores = key, models, frozenset(ignores)
        self.reply = reply or SCRIPTS[script]
        self._log: list[dict[str, Any]] = []
        self._open = 0
        self.bodies: dict[str, dict[str, Any]] = {}
        self._file = open(log_file, "a", encoding="utf-8", buffering=1) if log_file else None  # noqa: SIM115
        self._lock = threading.Lock()
        self._attempts: Counter[str] = Counter()
        self._level, self._since = 0.0, time.monotonic()
        handler = type("Bound", (Handler,), {"script": self})
        self._http = Listener(("127.0.0.1", port), handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}/v1"

    def __enter__(self) -> "Server":
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()
        if self._file:
            self._file.close()

    def serve(self) -> None:
        """Answer until the process ends."""
        self._http.serve_forever()

    @property
    def answered(self) -> Counter[str]:
        """How many times each body was answered, which costs money."""
        return Counter(entry["key"] for entry in self.log if entry["done"] in PAID)

    @property
    def log(self) -> list[dict[str, Any]]:
        """What was done so far; waits until no request is in progress (at most 5 s)."""
        end = time.monotonic() + 5
        while self._open and time.monotonic() < end:
            time.sleep(0.005)
        with self._lock:
            return list(self._log)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """While a request is in progress."""
        with self._lock:
            self._open += 1
        try:
            yield
        finally:
            with self._lock:
                self._open -= 1

    def take(self, body: dict[str, Any]) -> tuple[str, int, str]:
        """The key of a request, its attempt, and what is to be done to it."""
        key = digest(body)
        with self._lock:
            attempt = self._attempts[key]
            self._attempts[key] += 1
            self.bodies[key] = body
            full = self._is_full()
        if full:
            return key, attempt, "429_rate"
        if self.kinds and draw(self.seed, key, attempt) < self.faults:
            return key, attempt, self.kinds[int(draw(self.seed, key, attempt, "kind") * len(self.kinds))]
        return key, attempt, "answered"

    def note(self, key: str, attempt: int, done: str) -> None:
        entry = {"key": key, "attempt": attempt, "done": done, "at": time.time()}
        entry["model"] = self.bodies.get(key, {}).get("model", "")
        with self._lock:
            self._log.append(entry)
            if self._file and not self._file.closed:
                self._file.write(json.dumps(entry) + "\n")

    def _is_full(self) -> bool:
        if self.rpm is None:
            return False
        now, rate = time.monotonic(), self.rpm / 60
        self._level = max(0.0, self._level - (now - self._since) * rate)
        self._since = now
        if self._level + 1 > max(1.0, rate):
            return True
        self._level += 1
        return False


class Listener(ThreadingHTTPServer):
    request_queue_size = 512
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that go away are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    script: Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Keep the terminal clean; the log is the server's own."""

    def do_GET(self) -> None:
        models = [{"id": name, "object": "model"} for name in self.script.models or ["scripted"]]
        self._json(200, {"object": "list", "data": models})

    def do_POST(self) -> None:
        with self.script.busy():
            self._post(json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0)))))

    def _post(self, body: dict[str, Any]) -> None:
        script = self.script
        if script.key is not None and self.headers.get("Authorization") != f"Bearer {script.key}":
            script.note(digest(body), 0, "401")
            return self._error(401, "Incorrect API key provided.", code="invalid_api_key")
        if script.models is not None and body.get("model") not in script.models:
            script.note(digest(body), 0, "404")
            return self._error(404, f"The model {body.get('model')!r} does not exist.", code="model_not_found")
        key, attempt, what = script.take(body)
        if not what.startswith(("429", "cut")) or what == "cut_body":
            time.sleep(script.delay)
        if self._gone():
            self.close_connection = True
            return script.note(key, attempt, "abandoned")
        try:
            self._do(what, body, attempt)
        except OSError:
            self.close_connection = True
            what = "abandoned"
        return script.note(key, attempt, what.removesuffix("_rate"))

    def _do(self, what: str, body: dict[str, Any], attempt: int) -> None:
        if what == "429":
            return self._error(429, "Slow down.", retry_after=f"{self.script.retry_after:g}")
        if what == "429_rate":
            return self._error(429, "Rate limit reached.", retry_after=str(max(1, math.ceil(60 / self.script.rpm))))
        if what in ("500", "503"):
            return self._error(int(what), "The server had an error.")
        if what == "filter_400":
            return self._error(400, "The prompt was filtered.", code="content_filter")
        if what == "cut":
            return self._cut()
        content = json.dumps(self._completion(what, body, attempt)).encode()
        if what == "invalid_json":
            return self._send(200, content[: len(content) // 2])
        if what == "cut_body":
            self.wfile.write(self._head(200, len(content)) + content[: len(content) // 2])
            return self._cut()
        if what == "slow":
            return self._drip(content)
        return self._send(200, content)

    def _completion(self, what: str, body: dict[str, Any], attempt: int) -> dict[str, Any]:
        ignores = self.script.ignores
        seen = {name: value for name, value in body.items() if name not in ignores}
        restless = "temperature" in ignores or ("seed" in ignores and body.get("temperature", 1))
        nonce = f"{attempt}:{time.time_ns()}" if restless else ""
        n = 2 if what == "wrong_n" else 0 if what == "empty_choices" else int(seen.get("n") or 1)
        choices = [choice_of(seen, self.script.reply, index=i, nonce=nonce, what=what) for i in range(n)]
        read = sum(len(str(turn.get("content", "")).split()) + 4 for turn in body.get("messages", []))
        written = sum(len(choice["message"]["content"].split()) + 1 for choice in choices)
        usage = {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}
        return {"id": f"chatcmpl-{digest(body)[:12]}", "object": "chat.completion", "created": 0,
                "model": body.get("model", ""), "choices": choices, "usage": usage}  # fmt: skip

    def _gone(self) -> bool:
        """Whether the client has closed the connection."""
        ready, _, _ = select.select([self.connection], [], [], 0)
        try:
            return bool(ready) and self.connection.recv(1, socket.MSG_PEEK) == b""
        except OSError:
            return True

    def _head(self, status: int, length: int, **headers: str) -> bytes:
        lines = [f"HTTP/1.1 {status} {self.responses.get(status, ('',))[0]}", "Content-Type: application/json",
                 f"Content-Length: {length}", *(f"{name}: {value}" for name, value in headers.items())]  # fmt: skip
        return ("\r\n".join(lines) + "\r\n\r\n").encode()

    def _send(self, status: int, content: bytes, **headers: str) -> None:
        self.wfile.write(self._head(status, len(content), **headers) + content)

    def _json(self, status: int, value: Any) -> None:
        self._send(status, json.dumps(value).encode())

    def _error(self, status: int, message: str, *, code: str | None = None, retry_after: str | None = None) -> None:
        content = json.dumps({"error": {"message": message, "type": "error", "param": None, "code": code}}).encode()
        self._send(status, content, **({"Retry-After": retry_after} if retry_after else {}))

    def _drip(self, content: bytes) -> None:
        self.wfile.write(self._head(200, len(content)))
        step = max(1, len(content) // 20)
        for start in range(0, len(content), step):
            time.sleep(self.script.slow / 20)
            if self._gone():
                raise BrokenPipeError
            self.wfile.write(content[start : start + step])

    def _cut(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)


def main() -> None:
    """Serve as a process of its own; prints its URL."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--log", default=None)
    parser.add_argument("--faults", type=float, default=0.0)
    parser.add_argument("--kinds", nargs="*", default=FAULTS, choices=FAULTS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rpm", type=float, default=None)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--slow", type=float, default=0.3)
    parser.add_argument("--key", default=None)
    parser.add_argument("--models", nargs="*", default=None)
    parser.add_argument("--ignores", nargs="*", default=())
    parser.add_argument("--script", default="mutator_judge", choices=sorted(SCRIPTS))
    given = vars(parser.parse_args())
    server = Server(log_file=given.pop("log"), **given)
    print(server.url, flush=True)
    server.serve()


if __name__ == "__main__":
    main()
