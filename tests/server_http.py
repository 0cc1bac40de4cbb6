"""The HTTP side of the scripted server: how a request is read and an answer, or a fault, is sent."""

import json
import math
import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer, ThreadingHTTPServer
from typing import Any

from script import choice_of, digest

# What may be done to a request. Those in PAID gave the client its reply: such a request must never be asked again.
ANSWERS = ("slow", "no_logprobs", "length", "content_filter", "filter_400")
FAULTS = ("429", "500", "503", "cut", "cut_body", "invalid_json", "empty_choices", "wrong_n", *ANSWERS)
PAID = frozenset({"answered", *ANSWERS})


class Listener(ThreadingHTTPServer):
    request_queue_size = 512
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    script: Any  # the Server that it speaks for
    protocol_version = "HTTP/1.1"
    given: tuple[str, int] | None = None  # the last reply on this connection: its key and attempt
    disable_nagle_algorithm = True

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """The log is the server's own."""

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
            lost = self.close_connection and self.connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        except ConnectionResetError:
            lost = self.close_connection = True
        if lost and self.given:  # a reset: the reply met a closed socket, or lay in it unread when it closed
            self.script.unread(*self.given)

    def do_GET(self) -> None:
        models = [{"id": name, "object": "model"} for name in self.script.models or ["scripted"]]
        self._json(200, {"object": "list", "data": models})

    def do_POST(self) -> None:
        with self.script.busy():
            self._post(json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0)))))

    def _post(self, body: dict[str, Any]) -> None:
        script, self.given = self.script, None
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
        script.note(key, attempt, what.removesuffix("_rate"))
        self.given = (key, attempt) if what in PAID else None

    def _do(self, what: str, body: dict[str, Any], attempt: int) -> None:
        if what == "429":
            return self._error(429, "Slow down.", retry_after=f"{self.script.retry_after:g}")
        if what == "429_rate":
            return self._error(429, "Rate limit reached.", retry_after=str(max(1, math.ceil(60 / self.script.rpm))))
        if what == "429_quota":
            return self._error(429, "You exceeded your current quota.", code="insufficient_quota")
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


@contextmanager
def fixed(status: int, payload: object) -> Iterator[str]:
    """The URL of a server that says one thing to all."""

    class Fixed(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            content = json.dumps(payload).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Fixed)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    server.server_close()
