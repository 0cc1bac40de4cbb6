"""The run folder: manifest, journal, atomic results. The only writer to disk (trackers and trainers excepted).

A reader finds in a stage's folder either a whole file or none: results are written beside and renamed. A journal
grows by whole lines; a line torn by a kill is cut off when the journal is opened again.
"""

import dataclasses
import fcntl
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter
from safetensors.numpy import save as save_tensors

T = TypeVar("T")


class ConflictError(RuntimeError):
    """The folder holds results of another configuration, or another process is writing to it."""


def encode(value: Any) -> Any:
    """``value`` as plain JSON data; records become objects with their fields in order."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: encode(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): encode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [encode(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return value


def decode(kind: type[T], data: Any) -> T:
    """A record of type ``kind`` from plain JSON data.

    Raises:
        pydantic.ValidationError: where the data does not fit, naming the field.
    """
    return TypeAdapter(kind).validate_python(data)


def dumps(value: Any) -> str:
    """One line of JSON: compact, unescaped Unicode, floats in full, lone surrogates replaced."""
    text = json.dumps(encode(value), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    return text.encode("utf-8", "replace").decode("utf-8")


def config_hash(config: Mapping[str, Any]) -> str:
    """The first 16 hexadecimal digits of the SHA-256 of the canonical JSON of ``config``."""
    canonical = json.dumps(encode(config), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode("utf-8", "replace")).hexdigest()[:16]


def differing_keys(old: Mapping[str, Any], new: Mapping[str, Any], *, prefix: str = "") -> list[str]:
    """The dotted keys at which two nested configurations differ, each with both values."""
    found: list[str] = []
    for key in sorted({*old, *new}):
        before, after = old.get(key, "<absent>"), new.get(key, "<absent>")
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            found += differing_keys(before, after, prefix=f"{prefix}{key}.")
        elif before != after:
            found.append(f"{prefix}{key} (there {before!r}, now {after!r})")
    return found


def read_json(path: Path) -> Any:
    """The JSON value in ``path``.

    Raises:
        FileNotFoundError: where it does not exist.
        ValueError: where it is not JSON, naming the file.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); delete it and rerun the stage that wrote it") from error


def read_jsonl(path: Path) -> Iterator[Any]:
    """The rows of a JSONL file that this project wrote.

    Raises:
        ValueError: at a broken line, naming file and line.
    """
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            try:
                yield json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(
                    f"{path}:{number} is not valid JSON ({error}); rerun the stage that wrote it"
                ) from error


class Journal:
    """An append-only JSONL file that survives a kill: every line is flushed to disk before ``append`` returns."""

    def __init__(self, path: Path) -> None:
        """Open ``path``, cutting off a last line that was torn."""
        self._path = path
        self._rows = self._recover()

    @property
    def rows(self) -> list[Any]:
        """The rows that were whole when the journal was opened, and those appended since."""
        return self._rows

    def append(self, row: Any) -> None:
        """Write one row and force it to disk."""
        line = dumps(row)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._rows.append(json.loads(line))

    def _recover(self) -> list[Any]:
        if not self._path.exists():
            return []
        data = self._path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        rows: list[Any] = []
        for number, line in enumerate(whole.splitlines(), start=1):
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise ValueError(
                    f"{self._path}:{number} is damaged ({error}); delete the folder to start anew"
                ) from error
        if len(whole) != len(data):
            with self._path.open("r+b") as file:
                file.truncate(len(whole))
        return rows


def _of_the_beginning(old: Mapping[str, Any], facts: Mapping[str, Any]) -> dict[str, Any]:
    """What a manifest says of how its stage began, and, where there are any, the other commits at which it went on."""

    def tree(of: Mapping[str, Any]) -> str:
        return f"{of.get('commit')}{' with changes' if of.get('dirty') else ''}"

    kept = {key: old[key] for key in ("start", "commit", "dirty", "identities") if key in old}
    later = [*old.get("resumed", ())]
    if tree(facts) not in (tree(old), *later):
        later.append(tree(facts))
    return {**kept, "resumed": later} if later else kept


class Store:
    """One stage's folder. Holds a lock for as long as it lives, so two runs never write to one folder."""

    def __init__(self, folder: Path) -> None:
        """Create ``folder`` where needed and lock it.

        Raises:
            ConflictError: where another process holds it.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._lock = (folder / ".lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise ConflictError(
                f"{folder} is in use by another run; wait for it, or give this one another name=…"
            ) from error

    def close(self) -> None:
        """Release the lock."""
        self._lock.close()

    def claim(self, config: Mapping[str, Any], *, facts: Mapping[str, Any], derived: bool = False) -> None:
        """Begin or resume a stage: write the manifest, or check that the one there has the same configuration.

        ``facts`` holds what describes but does not decide a run (commit, versions, device, start); where a
        stage is resumed or rerun, start and commit stay those of its beginning, and `resumed` names the other commits.
        A ``derived`` stage is rebuilt from files every time, so it never conflicts and keeps nothing.

        Raises:
            ConflictError: where the folder holds results of another configuration, naming the keys.
        """
        path = self.folder / "manifest.json"
        digest = config_hash(config)
        if path.exists() and not derived:
            old = read_json(path)
            if old.get("config_hash") != digest:
                keys = "; ".join(differing_keys(old.get("config", {}), encode(config))) or "schema"
                raise ConflictError(
                    f"{self.folder} holds results of another configuration; these keys differ: {keys}. "
                    "Give this run another name=…, restore those keys, or delete the folder."
                )
            facts = {**facts, **_of_the_beginning(old, facts)}
        manifest = {"schema": 1, "config_hash": digest, "config": config, **facts, "end": None}
        self.write_json("manifest.json", manifest)

    def identify(self, identities: Mapping[str, Any], *, derived: bool = False) -> None:
        """Add to the manifest what each model says of itself, or check that it says the same as when this run began.

        Raises:
            ConflictError: where a model behind the same configuration has changed, naming the keys.
        """
        manifest = read_json(self.folder / "manifest.json")
        old = manifest.get("identities")
        if old is not None and old != encode(identities) and not derived:
            keys = "; ".join(differing_keys(old, encode(identities)))
            raise ConflictError(f"{self.folder} was begun with another model: {keys}. Give this run another name=…")
        self.complete(identities=identities)

    def complete(self, **facts: Any) -> None:
        """Add ``facts`` (end, n, n_unscored, tokens …) to the manifest."""
        self.write_json("manifest.json", {**read_json(self.folder / "manifest.json"), **facts})

    def journal(self, name: str) -> Journal:
        """The journal ``name`` in this folder (subfolders allowed)."""
        return Journal(self._target(name))

    def write_text(self, name: str, text: str) -> Path:
        """Write a text file whole or not at all; its path."""
        return self._replace(name, text.encode("utf-8", "replace"))

    def write_json(self, name: str, value: Any) -> Path:
        """Write indented JSON whole or not at all; its path.

        Raises:
            ValueError: for a number that JSON does not know (NaN, infinity).
        """
        return self.write_text(name, json.dumps(encode(value), ensure_ascii=False, indent=2, allow_nan=False) + "\n")

    def write_jsonl(self, name: str, rows: Iterable[Any]) -> Path:
        """Write one JSON object a line, whole or not at all; the file's path."""
        return self.write_text(name, "".join(dumps(row) + "\n" for row in rows))

    def write_tensors(self, name: str, tensors: Mapping[str, Any]) -> Path:
        """Write numpy arrays as safetensors, whole or not at all; the file's path."""
        return self._replace(name, save_tensors(dict(tensors)))

    def write_bytes(self, name: str, data: bytes) -> Path:
        """Write bytes (a picture) whole or not at all; the file's path."""
        return self._replace(name, data)

    def _target(self, name: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _replace(self, name: str, data: bytes) -> Path:
        path = self._target(name)
        beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        try:
            with beside.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            beside.replace(path)
        finally:
            beside.unlink(missing_ok=True)
        return path
