"""A scripted loopback server that speaks the chat part of OpenAI's protocol, and fails on request.

In a test: `with Server(faults=0.3) as server:` gives `server.url` and `server.log`. As a process of its own:

    python tests/server.py --port 8901 --log requests.jsonl --faults 0.3 --seed 1 --rpm 600 --delay 0.05

A reply is a pure function of the request's body, and a fault of (seed, body, attempt), so any two runs against it see
the same. Each request is one JSON line in the log: `key` (SHA-256 of the body), `attempt` (from 0), `done` (what was
sent; "abandoned": the client had gone before; "unread": it died with the reply still in its socket, which the
system tells by resetting the connection; in the file a second line), `at` (seconds since 1970, after sending), `model`.
"""

import argparse
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from script import SCRIPTS, digest, draw
from server_http import FAULTS, PAID, Handler, Listener


class Server:
    """The scripted server.

    ``faults`` is the share of attempts that go wrong, each in one of ``kinds``. ``rpm`` answers 429 beyond that rate,
    with at most one second's worth at once. ``delay`` is the time that an answer takes, ``slow`` that of a slow body,
    in seconds. ``funds`` is how many more replies the account can pay for (None: any number); then it answers a 429 of
    insufficient_quota at once. ``key`` is the only key accepted and ``models`` the only models known; None: any.
    ``ignores`` names fields of a body that the server takes no notice of, of ``n``, ``logprobs``, ``response_format``,
    ``seed`` and ``temperature``; without its seed no two sampled replies are alike, without its temperature no two at
    all.
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
        funds: int | None = None,
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
        self.funds = funds
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
        what = "answered"
        if self.kinds and draw(self.seed, key, attempt) < self.faults:
            what = self.kinds[int(draw(self.seed, key, attempt, "kind") * len(self.kinds))]
        return key, attempt, "429_quota" if what in PAID and not self._pays() else what

    def note(self, key: str, attempt: int, done: str) -> None:
        entry = {"key": key, "attempt": attempt, "done": done, "at": time.time()}
        entry["model"] = self.bodies.get(key, {}).get("model", "")
        with self._lock:
            self._log.append(entry)
            if self._file and not self._file.closed:
                self._file.write(json.dumps(entry) + "\n")

    def unread(self, key: str, attempt: int) -> None:
        with self._lock:
            entry = next(e for e in reversed(self._log) if (e["key"], e["attempt"]) == (key, attempt))
            entry["done"] = "unread"
            if self._file and not self._file.closed:
                self._file.write(json.dumps(entry) + "\n")

    def _pays(self) -> bool:
        """Take a reply's price from the account, where there is one."""
        with self._lock:
            if self.funds is not None:
                self.funds -= 1
            return self.funds is None or self.funds >= 0

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


def main() -> None:
    """Serve as a process of its own; prints its URL."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = {"port": int, "log": str, "seed": int, "key": str}
    kinds |= dict.fromkeys(("faults", "rpm", "delay", "slow"), float)
    for name, kind in kinds.items():
        parser.add_argument(f"--{name}", type=kind, default=argparse.SUPPRESS)
    for name in ("kinds", "models", "ignores"):
        parser.add_argument(f"--{name}", nargs="*", default=argparse.SUPPRESS)
    parser.add_argument("--script", default="mutator_judge", choices=sorted(SCRIPTS))
    given = vars(parser.parse_args())
    server = Server(log_file=given.pop("log", None), **given)
    print(server.url, flush=True)
    server.serve()


if __name__ == "__main__":
    main()
