"""Rebuild evorefuse/data/probe_{neutral,sensitive}.jsonl: held-out everyday requests with one sentence added.

Each held-out request appears with two neutral and with two sensitive but innocent sentences that the guard never saw,
so that what a sentence adds to the refusal probability is paired by request. Run from the repository root:

    python experiments/guard/probes.py
"""

import json
from pathlib import Path

from evorefuse.records import content_id, stream
from evorefuse.store import dumps

DATA = Path(__file__).parents[2] / "evorefuse" / "data"


def read(name: str) -> list[dict[str, str]]:
    """The rows of a shipped set."""
    return [json.loads(line) for line in (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def main() -> None:
    """Write both sets."""
    requests = [row for row in read("guard_everyday") if row["split"] == "held_out"]
    for kind in ("neutral", "sensitive"):
        additions = [row for row in read("probe_additions") if row["kind"] == kind]
        lines: list[str] = []
        for row in requests:
            text = row["instruction"]
            for addition in stream("probes", kind, content_id(text)).sample(additions, 2):
                parts = [addition["text"], text] if addition["position"] == "before" else [text, addition["text"]]
                lines.append(
                    dumps({"instruction": " ".join(parts), "seed_id": content_id(text), "length": row["length"]})
                )
        (DATA / f"probe_{kind}.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
