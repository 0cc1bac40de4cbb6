"""The page itself: one HTML string that asks nothing of any network. All data goes through jinja2's autoescape."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from evorefuse.page.cards import cards_used
from evorefuse.page.cell import Cell, pretty
from evorefuse.page.findings import Check, Strategy, Validity
from evorefuse.page.headline import Headline
from evorefuse.page.lineage import Lineage
from evorefuse.page.tables import Table, interval, number, words

HERE = Path(__file__).parent
_SHOWN_APART = ("schema", "config", "packages")
_CONDITIONS = ("models", "model", "target", "identities", "engine", "device", "sampling")


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """All that the page shows. ``figures`` maps a figure's name to the SVG fit for the page."""

    title: str
    cell: Cell
    unsafe: Sequence[str]
    headline: Headline
    checks: Sequence[Check]
    figures: Mapping[str, str]
    tables: Mapping[str, Table]
    strategies: Sequence[Strategy]
    lineages: Mapping[str, Sequence[Lineage]]
    n_lineages: Mapping[str, int]
    validity: Validity
    others: Mapping[str, Table]


def render(content: Content) -> str:
    """The whole page as one self-contained HTML document."""
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"words": words, "pretty": pretty, "num": number}
    script = (HERE / "page.js").read_text(encoding="utf-8")
    digest = base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")
    return environment.get_template("page.html.j2").render(
        interval=interval,
        c=content,
        cell=content.cell,
        svg={name: Markup(svg) for name, svg in content.figures.items()},
        css=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash=digest,
        cards=cards_used(content.cell),
        conditions=conditions(content.cell),
        facts=facts(content.cell),
        fitness=fitness_formula(content.cell),
    ).encode("utf-8", "replace").decode("utf-8")  # fmt: skip


def conditions(cell: Cell) -> list[tuple[str, str]]:
    """What decides a reply, as dotted keys and values: the model, the engine, the sampling, from the manifests."""
    stage = next((name for name in ("benchmark", "generate") if name in cell.manifests), None)
    manifest = cell.manifests[stage] if stage else next(iter(cell.manifests.values()), {})
    rows: dict[str, str] = {"fitness": terms} if (terms := fitness_terms(cell)) else {}
    for part in (manifest.get("config", {}), {k: v for k, v in manifest.items() if k != "config"}):
        for key, value in flat(part):
            if any(name in _CONDITIONS for name in key.split(".")) and not key.endswith("_target_"):
                rows[key] = value
    return list(rows.items())


def fitness_terms(cell: Cell) -> str:
    """Which terms of the ELBO the search went by; empty without a search, or where its fitness has none."""
    found = [c.fitness for arm in cell.arms.values() for c in arm.proposed if c.fitness.value is not None]
    if not any(fitness.log_refusal is not None for fitness in found):
        return ""
    missing = sum(fitness.log_confidence is None for fitness in found)
    if not missing:
        return "refusal and confidence terms"
    if missing == len(found):
        return "refusal term alone: the target gives no log-probabilities, so the confidence term is absent"
    return f"refusal term; the confidence term is absent from {missing} of {len(found)} candidates"


def fitness_formula(cell: Cell) -> str:
    """What F is made of, with λ where the search's manifest holds one; empty where it is no ELBO or has one term."""
    found = [c.fitness for arm in cell.arms.values() for c in arm.proposed]
    if not any(fitness.log_confidence is not None for fitness in found):
        return ""
    rows = flat(cell.node("generate", "fitness"))
    weights = {text for key, text in rows if key.rpartition(".")[2] == "confidence_weight"}
    return "log refusal + λ × log confidence" + (f" with λ = {weights.pop()}" if len(weights) == 1 else "")


def facts(cell: Cell) -> list[tuple[str, list[tuple[str, str]], Mapping[str, Any]]]:
    """By stage: its manifest's facts as dotted keys and values, and what is shown apart (configuration, packages)."""
    return [
        (
            stage,
            flat({key: value for key, value in manifest.items() if key not in _SHOWN_APART}),
            {key: manifest[key] for key in ("config", "packages") if manifest.get(key)},
        )
        for stage, manifest in cell.manifests.items()
    ]


def flat(value: Mapping[str, Any], *, prefix: str = "") -> list[tuple[str, str]]:
    """Dotted keys and printable values of nested mappings, in order."""
    rows: list[tuple[str, str]] = []
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            rows += flat(item, prefix=f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", _text(item)))
    return rows


def _text(value: Any) -> str:
    if value is None:
        return "—"
    if isinstance(value, list):
        return ", ".join(_text(item) for item in value) or "—"
    return "“”" if value == "" else str(value)
