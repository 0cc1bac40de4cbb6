"""Instruction sets from the Hugging Face hub, at a pinned revision."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast

from datasets import load_dataset

from evorefuse.records import Instruction, subset


@dataclass(frozen=True, slots=True, kw_only=True)
class Hub:
    """A data set's column as instructions. ``revision`` must be a full commit SHA, so that the set cannot move.

    ``where`` keeps the rows whose fields have these values; ``sample`` draws that many (0: all) with ``seed``.
    """

    id: str
    revision: str
    column: str
    config: str | None = None
    split: str = "train"
    where: dict[str, str] | None = None
    sample: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse a revision that could move.

        Raises:
            ValueError: unless ``revision`` is 40 hexadecimal digits.
        """
        if not re.fullmatch(r"[0-9a-f]{40}", self.revision):
            raise ValueError(
                f"source {self.id}: revision must be a 40-digit commit SHA, got {self.revision!r}; "
                "the hub's 'Files and versions' page shows it"
            )

    def load(self) -> list[Instruction]:
        """The set in the data set's order, each text once.

        Raises:
            ValueError: where the column is missing or nothing is left.
        """
        table = load_dataset(self.id, self.config, split=self.split, revision=self.revision)
        if self.column not in (table.column_names or []):
            raise ValueError(f"{self.id} has no column {self.column!r}; it has {table.column_names}")
        rows = cast(Iterable[dict[str, Any]], table)
        wanted = (self.where or {}).items()
        kept = (row[self.column] for row in rows if all(str(row.get(k)) == v for k, v in wanted))
        texts = [str(text).strip() for text in kept if text is not None]
        unique = list(dict.fromkeys(text for text in texts if text))
        if not unique:
            raise ValueError(f"{self.id}: no row of split {self.split!r} is left with {self.where}")
        drawn = subset(unique, self.sample, "sample", self.id, self.seed)
        return [Instruction(text=text, source=f"{self.id}@{self.revision[:8]}") for text in drawn]
