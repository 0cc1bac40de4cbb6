"""Freeze the figures of finished runs into experiments/<name>/results.json.

    python experiments/freeze.py guard outputs/guard/seed=1 outputs/guard/seed=2 outputs/guard/seed=3

Every stage's summary is taken whole, with what its manifest says of its origin; a run that has not ended is refused.
"""

import json
import sys
from pathlib import Path
from statistics import fmean
from typing import Any

HERE = Path(__file__).parent
PROVENANCE = ("config_hash", "commit", "dirty", "resumed", "start", "end", "packages", "device", "identities", "config")


def read(path: Path) -> Any:
    """The JSON value in ``path``."""
    return json.loads(path.read_text(encoding="utf-8"))


def stage(folder: Path) -> dict[str, Any]:
    """One stage's metrics and provenance."""
    manifest = read(folder / "manifest.json")
    if not manifest.get("end"):
        raise SystemExit(f"{folder} has not ended: rerun its command, then freeze")
    kept = {key: manifest[key] for key in PROVENANCE if key in manifest and key != "config"}
    metrics = {name: shorten(metric) for name, metric in read(folder / "summary.json")["metrics"].items()}
    return {"manifest": kept, "metrics": metrics}


def shorten(metric: dict[str, Any]) -> dict[str, Any]:
    """A metric with its figures rounded to four digits."""
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in metric.items()}


def means(cells: dict[str, Any]) -> dict[str, Any]:
    """The mean and the range, of every metric that all have, over the cells that differ in their seed alone."""
    cells = {name: cell for name, cell in cells.items() if name.partition("=")[0] in ("main", "seed")}
    values: dict[str, list[float]] = {}
    for cell in cells.values():
        for name, found in cell.items():
            for key, metric in found["metrics"].items():
                if isinstance(metric["value"], (int, float)):
                    values.setdefault(f"{name}/{key}", []).append(metric["value"])
    whole = {key: own for key, own in values.items() if len(own) == len(cells)}
    return {key: {"mean": round(fmean(v), 4), "low": min(v), "high": max(v)} for key, v in sorted(whole.items())}


def main() -> None:
    """Write the results file of the experiment named first from the run folders named after it."""
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    name, *folders = sys.argv[1:]
    cells = {
        Path(folder).name: {
            part.parent.name: stage(part.parent) for part in sorted(Path(folder).glob("*/manifest.json"))
        }
        for folder in folders
    }
    if empty := [folder for folder, cell in zip(folders, cells.values(), strict=True) if not cell]:
        raise SystemExit(f"no finished stage in {', '.join(empty)}: give the folders of runs, outputs/<name>/<cell>")
    path = HERE / name / "results.json"
    result = {"experiment": name, "cells": cells, "over_cells": means(cells)}
    path.write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{path}: {len(cells)} cells")


if __name__ == "__main__":
    main()
