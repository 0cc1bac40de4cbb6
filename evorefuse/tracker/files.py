"""Tracker without an account: what is logged, as plain files under `tracker/` in the run folder."""

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evorefuse.records import Summary
from evorefuse.store import Journal, Store, encode, read_json


class Files:
    """Writes `metrics.jsonl` (one line a log, appended), `tables/<name>.jsonl`, `summary.json` and `artifacts.jsonl`.

    A resumed job goes on in the same files. Nothing is written before ``start``, nor after ``finish``.
    """

    def __init__(self) -> None:
        """Nothing is opened yet."""
        self._store: Store | None = None
        self._metrics: Journal | None = None

    def start(self, *, name: str, config: Mapping[str, Any], folder: str) -> None:
        """Open the files of the run folder ``folder``; the stages' manifests hold ``config``, so it is not repeated.

        Raises:
            ConflictError: where another run is writing there.
            ValueError: where `metrics.jsonl` is damaged.
        """
        self.finish()
        self._store = Store(Path(folder) / "tracker")
        self._metrics = self._store.journal("metrics.jsonl")
        self._store.write_json("run.json", {"name": name, "stages": config.get("stages", [])})

    def log(self, namespace: str, values: Mapping[str, float], *, step: int | None = None) -> None:
        """Append one line; a number that is not finite becomes null."""
        if self._metrics is not None:
            finite = {key: value if math.isfinite(value) else None for key, value in values.items()}
            self._metrics.append({"namespace": namespace, "step": step, **finite})

    def table(self, name: str, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
        """Write one object a row, whole or not at all."""
        if self._store is not None:
            objects = [{key: _plain(value) for key, value in zip(columns, row, strict=True)} for row in rows]
            self._store.write_jsonl(f"tables/{name}.jsonl", objects)

    def summary(self, summary: Summary) -> None:
        """Set the stage's metrics in `summary.json`; those of other stages stay."""
        if self._store is not None:
            path = self._store.folder / "summary.json"
            known = read_json(path) if path.exists() else {}
            self._store.write_json("summary.json", {**known, summary.stage: encode(summary)})

    def artifact(self, name: str, kind: str, paths: Sequence[str]) -> None:
        """Note where the files are; they lie in the run folder already."""
        if self._store is not None:
            self._store.journal("artifacts.jsonl").append({"name": name, "kind": kind, "paths": list(paths)})

    def finish(self) -> None:
        """Release the folder; safe to call twice."""
        if self._store is not None:
            self._store.close()
        self._store = self._metrics = None


def _plain(value: Any) -> Any:
    """``value`` as JSON can hold it: numbers that are not finite become null, unknown types their text."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if isinstance(value, (str, int, float, bool, type(None))) else str(value)
