"""A process of its own that asks served models and stores what they answer; it ends when no reply is on its way.

A request that was sent is paid for, whether or not we live to read its reply. So another process asks. Killed or
stopped, we leave it behind with the pipe closed; it then sends nothing more, reads and stores what is on its way, and
ends. Until then it holds the lock behind our claims: a rerun waits for these replies and asks none of them again.

Messages are JSON lines. To it: a batch, with the keys under which its replies are stored. From it: each reply once it
is stored, then `faults`, and `error` where no request can succeed. It reads providers' keys from the environment.
"""

import json
import os
import subprocess
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Generator, Iterator, Mapping
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TextIO, get_type_hints

from evorefuse.lm.endpoint import EndpointError
from evorefuse.ports import Streaming
from evorefuse.records import Reply, Request
from evorefuse.responses import CacheError, Responses
from evorefuse.store import decode, encode

_KNOWN = {kind.__name__: kind for kind in (EndpointError, CacheError)}


class Asker:
    """Asks for any number of models, one batch at a time, by a process that starts with the first batch."""

    def __init__(self, responses: Responses) -> None:
        """Store replies in ``responses``; what is asked must be claimed there."""
        self._responses = responses
        self._process: subprocess.Popen[str] | None = None
        self._left: list[subprocess.Popen[str]] = []  # they store what is on its way, and end by themselves

    def stream(
        self, model: Mapping[str, Any], batch: Mapping[str, Request], *, faults: Counter[str]
    ) -> Generator[tuple[str, Reply]]:
        """Each request's key and reply as they arrive, all but errors stored; ``faults`` counts failed attempts.

        ``model`` is what the other process builds the engine from: its class's path as `kind`, and its `settings`.
        Closing the iterator lets no more be sent; what is on its way is stored all the same.

        Raises:
            EndpointError: where no request can succeed.
            CacheError: where a reply could not be stored.
            RuntimeError: where the process ended by itself.
        """
        process = self._process = self._process or self._start()
        keys, end = list(batch), None
        try:
            for said in self._answers(
                process, {"model": model, "keys": keys, "requests": encode(list(batch.values()))}
            ):
                if "faults" in said:
                    end = said
                    break
                yield keys[said["index"]], decode(Reply, said["reply"])
        finally:
            if end is None:
                self._leave(process)
        if end is None:
            code = process.wait()
            raise RuntimeError(f"the process that asks the models ended (exit status {code}): run the command again")
        faults.update(end["faults"])
        if "error" in end:
            raise _KNOWN.get(end["kind"], RuntimeError)(end["error"])

    def close(self) -> None:
        """Let the process end, and wait for it; one that was left with replies on their way is not waited for."""
        if self._process:
            _hang_up(self._process)
            self._process.wait()
            self._process = None
        self._left = [process for process in self._left if process.poll() is None]

    def _start(self) -> subprocess.Popen[str]:
        lock = self._responses.lend()
        return subprocess.Popen(
            [sys.executable, "-m", "evorefuse.lm.asker", str(self._responses.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            pass_fds=(lock,),
            start_new_session=True,  # Ctrl-C is for us
        )

    def _answers(self, process: subprocess.Popen[str], batch: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        if process.stdin is None or process.stdout is None:
            raise TypeError("the process that asks the models has no pipes")
        try:
            process.stdin.write(json.dumps(batch) + "\n")
            process.stdin.flush()
        except BrokenPipeError:
            return
        yield from map(json.loads, process.stdout)

    def _leave(self, process: subprocess.Popen[str]) -> None:
        """Give up the process with what it is at, and our claims, which are now its own."""
        _hang_up(process)
        self._left.append(process)
        self._process = None
        self._responses.leave()


def _hang_up(process: subprocess.Popen[str]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe:
            with suppress(BrokenPipeError):  # it died with what we had to say unread
                pipe.close()


class _Desk:
    """The other side: builds the engines, answers batches, and lets nothing more be sent once nobody is there."""

    def __init__(self, responses: Responses, out: TextIO) -> None:
        self._responses = responses
        self._out: TextIO | None = out
        self._engines: dict[str, Streaming] = {}
        self._batches: SimpleQueue[dict[str, Any] | None] = SimpleQueue()
        self._alone = threading.Event()

    def listen(self, lines: TextIO) -> None:
        """Queue the batches in ``lines``; at their end drain the engines."""
        for line in lines:
            self._batches.put(json.loads(line))
        self._alone.set()
        for engine in list(self._engines.values()):
            engine.drain()
        self._batches.put(None)

    def work(self) -> None:
        """Answer one batch after the other until nobody is there."""
        while (batch := self._batches.get()) is not None and not self._alone.is_set():
            before: Mapping[str, int] = {}
            engine, end = None, dict[str, Any]()
            try:
                engine = self._engine(batch["model"])
                before = _faults(engine)
                self._answer(engine, batch)
            except Exception as error:
                if type(error).__name__ not in _KNOWN:
                    traceback.print_exc()
                end = {"kind": type(error).__name__, "error": str(error)}
            now = _faults(engine)
            self._say({"faults": {cause: n - before.get(cause, 0) for cause, n in now.items()}, **end})

    def _engine(self, model: Mapping[str, Any]) -> Streaming:
        name = json.dumps(model, sort_keys=True)
        if name not in self._engines:
            self._engines[name] = build(model)
            if self._alone.is_set():
                self._engines[name].drain()
        return self._engines[name]

    def _answer(self, engine: Streaming, batch: Mapping[str, Any]) -> None:
        keys = batch["keys"]

        def keep(index: int, reply: Reply) -> None:
            if reply.finish != "error":
                self._responses.put(keys[index], reply)

        for index, reply in engine.stream(decode(list[Request], batch["requests"]), keep=keep):
            self._say({"index": index, "reply": encode(reply)})

    def _say(self, message: Mapping[str, Any]) -> None:
        """Say it, where anybody still listens."""
        if self._out is None:
            return
        try:
            self._out.write(json.dumps(message) + "\n")
            self._out.flush()
        except BrokenPipeError:
            self._out = None


def recipe(kind: type, settings: Mapping[str, Any]) -> dict[str, Any]:
    """What `build` makes the engine ``kind(**settings)`` from in another process, as plain JSON; no key is in it."""
    return {"kind": f"{kind.__module__}.{kind.__qualname__}", "settings": encode(dict(settings))}


def build(model: Mapping[str, Any]) -> Streaming:
    """The engine of a recipe."""
    module, name = model["kind"].rsplit(".", 1)
    kind = getattr(import_module(module), name)
    hints = get_type_hints(kind.__init__)
    return kind(**{key: decode(hints[key], value) for key, value in model["settings"].items()})


def _faults(engine: Streaming | None) -> dict[str, int]:
    return dict(getattr(engine, "faults", {}))


def main() -> None:
    """Answer the batches on stdin until it closes and nothing is on its way; what libraries print goes to stderr."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as out:
        os.dup2(2, 1)
        desk = _Desk(Responses(Path(sys.argv[1])), out)
        threading.Thread(target=desk.listen, args=(sys.stdin,), daemon=True).start()
        desk.work()
        sys.stdout.flush()
        os._exit(0)  # the pipe may be broken, and closing it would complain


if __name__ == "__main__":
    main()
