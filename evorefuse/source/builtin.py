"""The instruction sets that the package ships (evorefuse/data/README.md says how each was made)."""

import json
from dataclasses import dataclass
from importlib import resources

from evorefuse.records import Instruction, subset


@dataclass(frozen=True, slots=True, kw_only=True)
class Builtin:
    """A shipped set, such as `seeds`, `controls` or `guard_everyday`.

    ``where`` keeps the rows whose fields have these values; ``sample`` draws that many (0: all) with ``seed``.
    """

    set: str
    where: dict[str, str] | None = None
    sample: int = 0
    seed: int = 0

    def load(self) -> list[Instruction]:
        """The set in file order.

        Raises:
            FileNotFoundError: where no such set is shipped, naming those that are.
            ValueError: where no row is left.
        """
        folder = resources.files("evorefuse.data")
        file = folder / f"{self.set}.jsonl"
        if not file.is_file():
            shipped = sorted(
                item.name.removesuffix(".jsonl") for item in folder.iterdir() if item.name.endswith(".jsonl")
            )
            raise FileNotFoundError(f"no built-in set {self.set!r}; there are: {', '.join(shipped)}")
        rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
        wanted = (self.where or {}).items()
        found = [row for row in rows if all(row.get(key) == value for key, value in wanted)]
        if not found:
            raise ValueError(f"no row of the built-in set {self.set!r} has {self.where}")
        return [
            Instruction(text=row["instruction"], seed_id=row.get("seed_id", ""), source=f"builtin:{self.set}")
            for row in subset(found, self.sample, "sample", self.set, self.seed)
        ]
