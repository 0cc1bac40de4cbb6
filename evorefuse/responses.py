"""The response cache: every reply that a served model has given, in one SQLite file that all processes share.

A key is the SHA-256 of the canonical JSON of the model's identity and the Request. Beside the replies stand claims: who
is asking what at this moment, so that two processes never pay for the same reply. A claim holds for as long as the
process that made it lives: each keeps a lock on a file of its own, which the system lets go when it dies, however.
The file belongs on a disk of this machine (SQLite's write-ahead log does not work across a network).
"""

import fcntl
import hashlib
import json
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO
from uuid import uuid4

from pydantic import TypeAdapter
from tenacity import retry, retry_if_exception, stop_after_delay, wait_random_exponential

from evorefuse.records import Reply, Request
from evorefuse.store import encode

SCHEMA = 1
_BUSY = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED)
_AT_ONCE = 500  # keys in one question; SQLite allows some 30,000
_REPLY = TypeAdapter(Reply)


class CacheError(ValueError):
    """The response cache cannot be used, with the file, the cause and how to mend it."""


def key_of(identity: Mapping[str, Any], request: Request) -> str:
    """The key of a reply: SHA-256 (hexadecimal) of the canonical JSON of a model's identity and a request."""
    canonical = json.dumps([encode(identity), encode(request)], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8")).hexdigest()


def _is_busy(error: BaseException) -> bool:
    """Whether another process holds the file for a moment."""
    return isinstance(error, sqlite3.OperationalError) and error.sqlite_errorcode & 0xFF in _BUSY


_patiently = retry(
    retry=retry_if_exception(_is_busy),
    wait=wait_random_exponential(multiplier=0.01, max=1),
    stop=stop_after_delay(600),
    reraise=True,
)


class Responses:
    """The replies in one file, for any number of processes at once; each reply is safe once ``put`` has returned.

    Threads may take turns, not work at once: while a model is asked, the one that reads its replies puts them here.
    """

    def __init__(self, path: Path) -> None:
        """Open or create the file at ``path``.

        Raises:
            CacheError: where it is damaged, of another version or cannot be opened.
        """
        self.path = path
        self._holding: tuple[str, TextIO] | None = None
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
            self._prepare()
        except (sqlite3.Error, OSError) as error:
            raise self._explained(error) from error

    def close(self) -> None:
        """Give up what is claimed and close the file."""
        self.leave()
        self._db.close()

    def lend(self) -> int:
        """The descriptor that our claims stand on: a process that inherits it holds them with us, and after us."""
        if self._holding is None:
            raise ValueError("nothing is claimed")
        return self._holding[1].fileno()

    def leave(self) -> None:
        """Give up what is claimed; where the claims were lent to another process, they are now its own."""
        if self._holding:
            owner, lock = self._holding
            self._holding = None
            lock.close()
            with suppress(sqlite3.Error):  # whoever claims next clears away what we could not
                self._clear(owner)

    def get_many(self, keys: Sequence[str]) -> dict[str, Reply]:
        """The replies that are there, by key.

        Raises:
            CacheError: where the file is damaged.
        """
        found: dict[str, Reply] = {}
        for start in range(0, len(keys), _AT_ONCE):
            some = keys[start : start + _AT_ONCE]
            marks = ",".join("?" * len(some))
            rows = self._read(f"SELECT key, reply FROM replies WHERE key IN ({marks})", some)
            try:
                found |= {key: _REPLY.validate_python(json.loads(reply)) for key, reply in rows}
            except ValueError as error:
                raise self._explained(error) from error
        return found

    def put(self, key: str, reply: Reply) -> None:
        """Keep a reply, and let go of the claim on it; the first reply to a key stays.

        Raises:
            CacheError: where the file cannot be written.
        """
        row = (key, json.dumps(encode(reply)), time.time())
        kept = ("INSERT OR IGNORE INTO replies (key, reply, created) VALUES (?, ?, ?)", [row])
        self._write(kept, ("DELETE FROM claims WHERE key = ?", [(key,)]))

    def claim(self, keys: Sequence[str]) -> list[str]:
        """Those of ``keys`` that are now ours to ask, in order: no reply is there and no living process asks for it.

        Raises:
            CacheError: where the file cannot be written.
        """
        try:
            return self._claim(keys)
        except (sqlite3.Error, OSError) as error:
            raise self._explained(error) from error

    def release(self, keys: Iterable[str]) -> None:
        """Let go of claims of ours, so that others may ask."""
        if self._holding:
            owner = self._holding[0]
            self._write(("DELETE FROM claims WHERE key = ? AND owner = ?", [(key, owner) for key in keys]))

    @_patiently
    def _prepare(self) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, SCHEMA):
            raise CacheError(
                f"the response cache {self.path} is of version {version}, expected {SCHEMA}: another version of "
                "evorefuse wrote it. Give cache=… another path."
            )
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("PRAGMA synchronous = NORMAL")  # a kill loses nothing; a power cut at worst the last replies
        self._db.execute("BEGIN IMMEDIATE")
        with self._db:
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS replies (key TEXT PRIMARY KEY, reply TEXT NOT NULL, created REAL NOT NULL)"
            )
            self._db.execute("CREATE TABLE IF NOT EXISTS claims (key TEXT PRIMARY KEY, owner TEXT NOT NULL)")
            self._db.execute(f"PRAGMA user_version = {SCHEMA}")

    @_patiently
    def _claim(self, keys: Sequence[str]) -> list[str]:
        self._db.execute("BEGIN IMMEDIATE")
        with self._db:
            owner = self._owner()
            taken: set[str] = set()
            for start in range(0, len(keys), _AT_ONCE):
                some = keys[start : start + _AT_ONCE]
                marks = ",".join("?" * len(some))
                there = self._db.execute(f"SELECT key FROM replies WHERE key IN ({marks})", some)
                taken |= {key for (key,) in there}
                held = self._db.execute(f"SELECT key, owner FROM claims WHERE key IN ({marks})", some).fetchall()
                living = {other for other in {other for _, other in held} if other != owner and self._lives(other)}
                taken |= {key for key, other in held if other in living}
            ours = [key for key in dict.fromkeys(keys) if key not in taken]
            self._db.executemany("INSERT OR REPLACE INTO claims (key, owner) VALUES (?, ?)", [(k, owner) for k in ours])
        return ours

    @_patiently
    def _clear(self, owner: str) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        with self._db:
            self._lives(owner)

    def _owner(self) -> str:
        """Our name among those who claim; with it goes a file that we hold locked for as long as we live.

        Called within a transaction, so that no other process takes a file that is not locked yet for a dead one's.
        """
        if self._holding is None:
            for left in self.path.parent.glob(f"{self.path.name}-*.lock"):
                self._lives(left.name.removeprefix(f"{self.path.name}-").removesuffix(".lock"))
            owner = uuid4().hex
            lock = self._lock_of(owner).open("w")
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._holding = owner, lock
        return self._holding[0]

    def _lives(self, owner: str) -> bool:
        """Whether another process that claims is still there; what a dead one left is cleared away."""
        try:
            with self._lock_of(owner).open("r") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except FileNotFoundError:
            return False
        except BlockingIOError:
            return True
        self._db.execute("DELETE FROM claims WHERE owner = ?", (owner,))
        self._lock_of(owner).unlink(missing_ok=True)
        return False

    def _lock_of(self, owner: str) -> Path:
        return self.path.with_name(f"{self.path.name}-{owner}.lock")

    def _read(self, query: str, values: Sequence[str]) -> list[tuple[str, str]]:
        try:
            return self._select(query, values)
        except sqlite3.Error as error:
            raise self._explained(error) from error

    def _write(self, *statements: tuple[str, Sequence[Sequence[Any]]]) -> None:
        try:
            self._transact(*statements)
        except sqlite3.Error as error:
            raise self._explained(error) from error

    @_patiently
    def _select(self, query: str, values: Sequence[str]) -> list[tuple[str, str]]:
        return self._db.execute(query, values).fetchall()

    @_patiently
    def _transact(self, *statements: tuple[str, Sequence[Sequence[Any]]]) -> None:
        self._db.execute("BEGIN IMMEDIATE")
        with self._db:
            for statement, rows in statements:
                self._db.executemany(statement, rows)

    def _explained(self, error: Exception) -> CacheError:
        if isinstance(error, CacheError):
            return error
        if isinstance(error, OSError | sqlite3.OperationalError):
            return CacheError(
                f"the response cache {self.path} cannot be used ({error}): make its folder writable with room on the "
                "disk, give cache=… another path, or switch it off with cache=null"
            )
        return CacheError(
            f"the response cache {self.path} is damaged ({error}): delete it, with the files beside it that begin "
            "with its name, and run the same command again; what is already in the run's folder is not asked again"
        )
