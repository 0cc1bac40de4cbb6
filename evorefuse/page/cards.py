"""Judge cards for the page: how far each scorer agrees with people, printed beside the rates that rest on it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evorefuse.page.cell import SHIPPED_CARDS, Cell
from evorefuse.page.tables import number, words
from evorefuse.records import content_id
from evorefuse.store import read_json

_LABELS = {
    "kappa": "agreement κ", "kappa_full": "κ, full refusals only", "ece": "calibration error", "n": "answers judged",
    "n_unscored": "unscored", "rate_people": "refusals, by people", "rate_judge": "refusals, by this judge",
    "per_model": "by model that answered", "confusion": "people (rows) against this judge (columns)",
}  # fmt: skip
_ENDS = ("_low", "_high")
_SHIPPED_WEIGHTS = SHIPPED_CARDS.parent / "refusal_classifier.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A small table: ``rows`` hold a name and one text a head."""

    title: str
    heads: tuple[str, ...]
    rows: tuple[tuple[str, tuple[str, ...]], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One card, or one part of it. Without any content the scorer has not been graded."""

    name: str
    texts: tuple[str, ...] = ()
    figures: tuple[tuple[str, str], ...] = ()
    grids: tuple[Grid, ...] = ()
    parts: tuple["Card", ...] = ()

    @property
    def is_missing(self) -> bool:
        """Whether the scorer has no card."""
        return not (self.texts or self.figures or self.grids or self.parts)


def cards_used(cell: Cell) -> list[Card]:
    """A card for each scorer whose verdicts are in the cell, empty where none is there for it and its weights."""
    refusal = cell.node("benchmark", "refusal") or cell.node("generate", "refusal")
    return [read_card(name, card_of(name, cards=cell.cards or {}, refusal=refusal)) for name in cell.scorers]


def card_of(name: str, *, cards: Mapping[str, Any], refusal: Mapping[str, Any]) -> Mapping[str, Any]:
    """The card of the scorer ``name``; that of the classifier only where it is of the weights that ``refusal`` loads.

    ``refusal`` is the scorer's node in a manifest (empty: the shipped weights, as where its `model` is null). A card
    that does not state its `weights` is of the shipped ones.
    """
    card = cards.get(name, {})
    if name != "classifier" or not card:
        return card
    model = refusal.get("model")
    file = Path(model) if isinstance(model, str) else _SHIPPED_WEIGHTS
    meant = card.get("weights") or weights_id(read_json(_SHIPPED_WEIGHTS))
    return card if file.is_file() and weights_id(read_json(file)) == meant else {}


def weights_id(weights: Mapping[str, Any]) -> str:
    """The id of a fitted classifier, from what its file holds."""
    return content_id(json.dumps(weights, sort_keys=True))


def read_card(name: str, data: Mapping[str, Any]) -> Card:
    """The card ``data``: texts, figures with their intervals (`kappa`, `kappa_low`, `kappa_high`), grids and parts."""
    texts: list[str] = []
    figures: list[tuple[str, str]] = []
    grids: list[Grid] = []
    parts: list[Card] = []
    for key, value in data.items():
        if key == "weights":
            continue
        label = _LABELS.get(key, words(str(key)))
        if isinstance(value, Mapping):
            if value and all(isinstance(row, Mapping) for row in value.values()):
                grids.append(_grid(label, value))
            else:
                parts.append(read_card(label, value))
        elif isinstance(value, str):
            texts.append(value)
        elif not key.endswith(_ENDS):
            figures.append((label, _figure(value, data.get(f"{key}_low"), data.get(f"{key}_high"))))
    return Card(name=name, texts=tuple(texts), figures=tuple(figures), grids=tuple(grids), parts=tuple(parts))


def _grid(title: str, data: Mapping[str, Mapping[str, Any]]) -> Grid:
    keys = list(dict.fromkeys(key for row in data.values() for key in row if not str(key).endswith(_ENDS)))
    used = [key for key in keys if any(row.get(key) for row in data.values())]
    rows = tuple((str(name), tuple(_figure(row.get(key)) for key in used)) for name, row in data.items())
    return Grid(title=title, heads=tuple(_LABELS.get(key, words(str(key))) for key in used), rows=rows)


def _figure(value: Any, low: Any = None, high: Any = None) -> str:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        text = number(value, kind="count" if isinstance(value, int) else "number")
        return text if low is None or high is None else f"{text} [{number(low)}, {number(high)}]"
    return "—" if value is None else str(value)
