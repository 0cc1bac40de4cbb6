"""The lineage explorer's data: each winner's way from its seed, with the words that are new and sample answers."""

import difflib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass

from evorefuse.page.cell import Arm, Cell
from evorefuse.records import Candidate, Metric, Trial


@dataclass(frozen=True, slots=True, kw_only=True)
class Stop:
    """One step of a lineage: ``words`` pairs each piece of its text with whether it is new against the step before."""

    candidate: Candidate
    words: tuple[tuple[str, bool], ...]
    rate: Metric
    n_refused: int
    answers: tuple[Trial, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Lineage:
    """One lineage of one arm, seed first, winner last; ``index`` is its place in the search."""

    arm: str
    index: int
    stops: tuple[Stop, ...]

    @property
    def rate(self) -> float:
        """The winner's fresh refusal rate; -1 where it was not measured, so that it sorts last."""
        value = self.stops[-1].rate.value
        return -1.0 if value is None else value

    @property
    def gain(self) -> float:
        """F of the winner minus F of the seed; 0 where either is unscored."""
        first, last = (stop.candidate.fitness.value for stop in (self.stops[0], self.stops[-1]))
        return 0.0 if first is None or last is None else last - first


def explore(cell: Cell, arm: Arm, *, limit: int, samples: int) -> list[Lineage]:
    """The first ``limit`` lineages of an arm, the winner's highest fresh rate first; ``samples`` answers a step."""
    found = [
        Lineage(arm=arm.name, index=index, stops=tuple(_stops(cell, chain, samples=samples)))
        for index, chain in enumerate(arm.lineages[:limit], start=1)
    ]
    return sorted(found, key=lambda lineage: (-lineage.rate, lineage.index))


def _stops(cell: Cell, chain: Sequence[Candidate], *, samples: int) -> list[Stop]:
    stops: list[Stop] = []
    before = chain[0].instruction.text
    for candidate in chain:
        text = candidate.instruction.text
        outcomes = cell.fresh(candidate.instruction)
        stops.append(
            Stop(
                candidate=candidate, words=tuple(new_words(before, text)),
                rate=cell.fresh_rate([candidate.instruction]), n_refused=sum(bool(outcome) for outcome in outcomes),
                answers=tuple(pick(cell.trials.get(candidate.instruction.id, ()), samples)),
            )
        )  # fmt: skip
        before = text
    return stops


def new_words(before: str, after: str) -> list[tuple[str, bool]]:
    """``after`` in pieces that join to it again, each with whether its words are new against ``before``."""
    old, new = re.findall(r"\s+|\S+", before), re.findall(r"\s+|\S+", after)
    is_new = [False] * len(new)
    for tag, _, _, start, end in difflib.SequenceMatcher(a=old, b=new, autojunk=False).get_opcodes():
        if tag in ("insert", "replace"):
            is_new[start:end] = [not piece.isspace() for piece in new[start:end]]
    for place in range(1, len(new) - 1):  # a gap between two new words belongs to them
        if new[place].isspace():
            is_new[place] = is_new[place - 1] and is_new[place + 1]
    runs = itertools.groupby(zip(new, is_new, strict=True), key=lambda piece: piece[1])
    return [("".join(text for text, _ in run), fresh) for fresh, run in runs]


def pick(trials: Sequence[Trial], limit: int) -> list[Trial]:
    """``limit`` of ``trials``: the first of each verdict, then the earliest others, in the order they were drawn."""
    firsts: dict[str, int] = {}
    for place, trial in enumerate(trials):
        firsts.setdefault(trial.verdicts[0].label if trial.verdicts else "unscored", place)
    order = sorted(range(len(trials)), key=lambda place: (place not in firsts.values(), place))
    return [trials[place] for place in sorted(order[:limit])]
