"""The dataset card: a README.md with the hub's YAML header, its figures with their intervals, and its provenance."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import DatasetCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from evorefuse.licence import stated_for
from evorefuse.page.cards import card_of
from evorefuse.page.cell import SHIPPED_CARDS
from evorefuse.page.tables import Column, Table, interval, number, to_markdown, words
from evorefuse.records import Metric
from evorefuse.store import read_json

_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))
_CAUSES = {
    "unchanged": "the search found nothing fitter than the seed",
    "unscored": "the safety judge could not tell",
    "not_safe": "not judged harmless when judged once more",
    "contaminated": "repeats an instruction of another set",
    "exact": "equals a fitter one but for case, marks and spaces",
    "minhash": "has nearly the words of a fitter one",
    "embedding": "has nearly the meaning of a fitter one",
}
_FACTS = ("id", "revision", "adapter", "system", "template", "dtype", "weights_sha256")


@dataclass(frozen=True, slots=True, kw_only=True)
class Content:
    """What the card says. ``rates`` and ``counts`` are by set and by cause; ``manifests`` by stage, as far as known."""

    title: str
    language: str
    licence: str
    faults: Sequence[str]
    n: int
    rates: Mapping[str, Metric]
    counts: Mapping[str, int]
    limits: Mapping[str, Any]
    against: Mapping[str, int]
    sources: Mapping[str, int]
    licences: Mapping[str, str]
    strategies: Mapping[str, int]
    judges: Sequence[str]
    manifests: Mapping[str, Mapping[str, Any]]
    example: Mapping[str, Any] | None


def render(content: Content) -> str:
    """The whole card as Markdown."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=False, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    return environment.get_template("dataset_card.md.j2").render(
        c=content,
        header=header(content),
        rates=_markdown(_rates(content)),
        removed=_markdown(_removed(content)),
        origins=_markdown(_origins(content)),
        strategies=_markdown(_counted("strategies", "strategy", content.strategies)),
        models=_markdown(_models(content)),
        runs=_markdown(_runs(content)),
        judges=[(name, judge_line(name, refusal=_refusal(content))) for name in content.judges],
        sampling=content.manifests.get("benchmark", {}).get("config", {}).get("benchmark", {}).get("sampling"),
        began=began(content),
        in_nats=content.example is None or content.example["fitness"]["log_refusal"] is not None,
        example=json.dumps(content.example, ensure_ascii=False, indent=2) if content.example else None,
    )


def manifest_of(file: Path) -> Mapping[str, Any]:
    """The manifest of the stage that wrote ``file``, in its folder or the one above; empty where there is none."""
    found = [folder / "manifest.json" for folder in (file.parent, file.parent.parent)]
    return next((read_json(path) for path in found if path.is_file()), {})


def began(content: Content) -> str:
    """What the instructions were before the search."""
    if all(source == "builtin:seeds" for source in content.sources):
        return "a plain everyday instruction"
    return "a request that may be unsafe" if _may_be_unsafe(content) else "an instruction from the sources named below"


def _may_be_unsafe(content: Content) -> bool:
    """Whether the search was told to take up seeds that are not harmless."""
    settings = content.manifests.get("generate", {}).get("config", {}).get("generate", {})
    return bool(settings.get("schedule", {}).get("unsafe_seeds"))


def header(content: Content) -> str:
    """The YAML header that the hub reads."""
    return DatasetCardData(
        pretty_name=content.title,
        language=content.language,
        license="unknown" if content.faults else content.licence.lower(),
        size_categories=next((name for limit, name in _SIZES if content.n < limit), "1M<n<10M"),
        task_categories=["text-generation"],
        tags=["over-refusal", "safety", "synthetic", "evorefuse"],
        configs=[{"config_name": "default", "data_files": "dataset.jsonl"}],
    ).to_yaml()


def _refusal(content: Content) -> Mapping[str, Any]:
    """The node of the scorer that judged the answers."""
    return content.manifests.get("benchmark", {}).get("config", {}).get("refusal") or {}


def judge_line(name: str, *, refusal: Mapping[str, Any]) -> str:
    """How far a judge agrees with people, in one sentence; ``refusal`` is the node of the refusal scorer."""
    cards = read_json(SHIPPED_CARDS) if SHIPPED_CARDS.exists() else {}
    shipped = card_of(name, cards=cards, refusal=refusal)
    if not shipped or shipped.get("kappa") is None:
        return "no card: how far it agrees with people has not been measured"
    kappa = Metric(value=shipped["kappa"], n=shipped["n"], low=shipped.get("kappa_low"), high=shipped.get("kappa_high"))
    return (
        f"κ {number(kappa.value)} {interval(kappa)} on {number(kappa.n, kind='count')} answers ({shipped['set']}); "
        f"refusals by people {number(shipped['rate_people'], kind='rate')} %, "
        f"by this judge {number(shipped['rate_judge'], kind='rate')} %"
    )


def _rates(content: Content) -> Table:
    columns = (
        Column(key="set", label="set"), Column(key="refused", label="answers that refuse", kind="rate"),
        Column(key="n", label="answers", kind="count"), Column(key="n_unscored", label="unscored", kind="count"),
    )  # fmt: skip
    notes = {"seeds": " (may be unsafe)"} if "unsafe" in began(content) else {}
    rows = tuple((name + notes.get(name, ""), m, m.n, m.n_unscored) for name, m in content.rates.items())
    caption = (
        "Full and partial refusals, with 95 % intervals at the effective sample size. Unscored answers are left out."
    )
    return Table(name="rates", caption=caption, columns=columns, rows=rows)


def _removed(content: Content) -> Table:
    columns = (
        Column(key="cause", label="cause"), Column(key="meaning", label="what it means"),
        Column(key="count", label="removed", kind="count"),
    )  # fmt: skip
    rows = tuple((words(cause), _CAUSES[cause], count) for cause, count in content.counts.items())
    return Table(name="removed", caption="", columns=columns, rows=rows)


def _origins(content: Content) -> Table:
    columns = (
        Column(key="source", label="source"), Column(key="licence", label="licence, as stated"),
        Column(key="count", label="instructions", kind="count"),
    )  # fmt: skip
    rows = tuple(
        (source or "—", stated_for(source, licences=content.licences), n) for source, n in content.sources.items()
    )
    return Table(name="sources", caption="", columns=columns, rows=rows)


def _counted(name: str, label: str, counts: Mapping[str, int]) -> Table:
    columns = (Column(key=label, label=label), Column(key="count", label="instructions", kind="count"))
    rows = tuple(sorted(((key or "—", count) for key, count in counts.items()), key=lambda row: (-row[1], row[0])))
    return Table(name=name, caption="", columns=columns, rows=rows)


def _models(content: Content) -> Table:
    """Every model behind the set, once a stage and role, as the manifests name it."""
    columns = tuple(Column(key=key, label=key) for key in ("stage", "role", "model", "what it was", "licence"))
    rows: list[tuple[str, ...]] = []
    for stage, manifest in content.manifests.items():
        licences = dict(_licences(manifest.get("config", {})))
        for role, identity in _identities(manifest.get("identities") or {}):
            facts = ", ".join(f"{key} {_short(identity[key])}" for key in _FACTS if identity.get(key) is not None)
            rows.append((stage, role, identity["name"], facts or "—", licences.get(identity["name"], "—")))
    return Table(name="models", caption="", columns=columns, rows=tuple(rows))


def _identities(node: Mapping[str, Any], *, role: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each role with the identity of its model; a mutator's or judge's own model stands within it."""
    for key, item in node.items():
        if isinstance(item, Mapping):
            own = f"{role}.{key}" if role else key
            if isinstance(item.get("name"), str):
                yield own, item
            yield from _identities(item, role=own)


def _licences(node: Any) -> Iterator[tuple[str, str]]:
    """The name and licence of every model in a configuration."""
    if isinstance(node, Mapping):
        if isinstance(node.get("name"), str) and isinstance(node.get("licence"), str):
            yield node["name"], node["licence"]
        for item in node.values():
            yield from _licences(item)


def _runs(content: Content) -> Table:
    columns = tuple(Column(key=key, label=key) for key in ("stage", "configuration", "commit", "begun"))
    rows = tuple(
        (
            stage,
            str(manifest.get("config_hash", "—")),
            f"{manifest.get('commit') or '—'}{' with changes' if manifest.get('dirty') else ''}",
            str(manifest.get("start", "—")),
        )
        for stage, manifest in content.manifests.items()
    )
    return Table(name="runs", caption="", columns=columns, rows=rows)


def _markdown(table: Table) -> str:
    return to_markdown(table).rstrip() + "\n"


def _short(value: Any) -> str:
    text = "(empty)" if value == "" else " ".join(str(value).split())
    return text if len(text) <= 40 else f"{text[:16]}…" if " " not in text else f"{text[:60]}…"
