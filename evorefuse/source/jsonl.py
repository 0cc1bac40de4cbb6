"""Instruction sets from files: JSONL (also our own instructions.jsonl) or CSV."""

import csv
import json
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from evorefuse.records import Instruction, subset

log = logging.getLogger(__name__)
MAX_CHARS = 8000
csv.field_size_limit(2**31 - 1)  # too long is a counted skip here, not an error of the reader


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """The instructions in ``path``; lines that are broken, empty or too long are counted, logged and skipped.

    ``column`` is the field that holds the text; ``where`` keeps the rows whose fields have these values; ``sample``
    draws that many (0: all) with ``seed``; ``max_chars`` is the longest text taken. A file without a row is an error,
    unless ``allow_empty`` says that it may be so: a search may have kept nothing.
    """

    path: str
    column: str = "instruction"
    where: dict[str, str] | None = None
    sample: int = 0
    seed: int = 0
    max_chars: int = MAX_CHARS
    allow_empty: bool = False

    def load(self) -> list[Instruction]:
        """The set in file order, each text once, stripped of surrounding white space.

        Raises:
            FileNotFoundError: where the file does not exist.
            ValueError: where no row has the column, or nothing usable is left, with the counts.
        """
        path = Path(self.path).expanduser()
        if not path.is_file():
            raise FileNotFoundError(
                f"no instruction set at {path}: give the path of a JSONL or CSV file, or source=hub"
            )
        rows = list(_csv_rows(path) if path.suffix.lower() == ".csv" else _jsonl_rows(path))
        skipped = {"broken": 0, "without text": 0, "too long": 0, "repeated": 0}
        found: dict[str, Instruction] = {}
        for row in rows:
            self._take(row, found=found, skipped=skipped)
        counts = ", ".join(f"{count} {cause}" for cause, count in skipped.items() if count)
        if counts:
            level = logging.WARNING if sum(skipped.values()) > skipped["repeated"] else logging.INFO
            log.log(
                level, "%s: %d rows skipped (%s), %d instructions kept", path, sum(skipped.values()), counts, len(found)
            )
        if not found and not (self.allow_empty and not rows):
            columns = sorted({key for row in rows if row for key in row})
            raise ValueError(
                f"{path} holds no usable instruction (column {self.column!r}; columns there: {columns}; "
                f"rows: {len(rows)}; skipped: {counts or 'none'})"
            )
        return subset(list(found.values()), self.sample, "sample", path.name, self.seed)

    def _take(self, row: dict[str, Any] | None, *, found: dict[str, Instruction], skipped: dict[str, int]) -> None:
        if row is None:
            skipped["broken"] += 1
            return
        if any(str(row.get(key)) != value for key, value in (self.where or {}).items()):
            return
        text = row.get(self.column)
        if not isinstance(text, str) or not text.strip():
            skipped["without text"] += 1
        elif len(text) > self.max_chars:
            skipped["too long"] += 1
        elif (instruction := _instruction(text.strip(), row, name=Path(self.path).name)).id in found:
            skipped["repeated"] += 1
        else:
            found[instruction.id] = instruction


def _instruction(text: str, row: dict[str, Any], *, name: str) -> Instruction:
    """An instruction with the lineage that our own files carry, where it is there."""
    return Instruction(
        text=text.encode("utf-8", "replace").decode("utf-8"),  # half a surrogate pair cannot be written
        seed_id=str(row.get("seed_id") or ""),
        parents=_names(row.get("parents")),
        trail=_names(row.get("trail")),
        source=str(row.get("source") or name),
        reason=str(row.get("reason") or ""),
    )


def _names(value: Any) -> tuple[str, ...]:
    return tuple(map(str, cast(list[Any], value))) if isinstance(value, list) else ()


def _jsonl_rows(path: Path) -> Iterator[dict[str, Any] | None]:
    with path.open(encoding="utf-8-sig", errors="replace") as lines:
        for line in lines:
            if line.strip():
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    row = None
                yield row if isinstance(row, dict) else None


def _csv_rows(path: Path) -> Iterator[dict[str, Any] | None]:
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as lines:
        for row in csv.DictReader(lines):
            yield None if None in row else row
