"""Rebuild evorefuse/data/guard_pairs.jsonl: what the guard adapter is trained on.

Unsafe requests are answered by a written refusal; a third of them stand between neutral sentences, and so do two short
everyday requests of three and every second long one, so that such sentences tell the guard nothing. No refusal opens as
the model's own answers do ("I"): otherwise a long friendly request, which it answers by "I'm glad", drifts into "I'm
sorry". Everyday requests are answered by the base model itself, under the very prompt that the guard is used with, so
that there is nothing to learn from its answers but not to refuse: its greedy answer, or, where that refuses or
apologises (it is a small model), the first of a few samples that does not. Answers stop by themselves or after 170
tokens; training looks at the first words only (`mitigate.answer_tokens`), so it never learns to stop. A request
without such an answer is left out and counted. Run from the repository root:

    python experiments/guard/pairs.py
"""

import json
from pathlib import Path

from evorefuse.lm.hf import HF
from evorefuse.lm.model import Model
from evorefuse.records import Exchange, Instruction, Pair, stream
from evorefuse.sampling import Sampling, draw
from evorefuse.scorer.classifier import Classifier
from evorefuse.store import dumps

DATA = Path(__file__).parents[2] / "evorefuse" / "data"
GREEDY = Sampling(samples=1, max_tokens=170, temperature=0.0)
WARM = Sampling(samples=4, max_tokens=60, temperature=0.7, top_p=0.95, top_k=50)


def rows(name: str) -> list[dict[str, str]]:
    """The training half of a shipped set."""
    lines = (DATA / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row.get("split", "train") == "train"]


def refusals() -> list[Pair]:
    """Every unsafe request with a refusal; padded ones in place of the bare text where there are any."""
    wordings = [row["refusal"] for row in rows("guard_refusals")]
    rng = stream("guard", "refusals")
    texts = [row.get("padded", row["instruction"]) for row in rows("guard_unsafe")]
    return [Pair(instruction=text, chosen=rng.choice(wordings), kind="unsafe") for text in texts]


def requests() -> list[Instruction]:
    """The everyday requests; two short ones of three and every second long one between neutral sentences.

    They are those that stand around unsafe requests, so that a neutral sentence says nothing about what it surrounds.
    """
    frames = [(row["padded"], row["instruction"]) for row in rows("guard_unsafe") if "padded" in row]
    rng, found = stream("guard", "frames"), []
    for index, row in enumerate(rows("guard_everyday")):
        text = row["instruction"]
        if index % 3 if row["length"] == "short" else index % 2:
            padded, unsafe = rng.choice(frames)
            text = padded.replace(unsafe, text)
        found.append(Instruction(text=text, source=row["length"]))
    return found


def compliant(own: tuple[Exchange, ...], *, judge: Classifier) -> list[str]:
    """The answers that comply and are plain English, in their order."""
    kept: list[str] = []
    for exchange, verdict in zip(own, judge.score(own), strict=True):
        text = exchange.reply.text.strip() if exchange.reply else ""
        complies = verdict.value is not None and verdict.value < 0.2 and "sorry" not in text.lower()
        if complies and text.isascii() and len(set(text.split())) > 3:
            kept.append(text)
    return kept


def answers() -> list[Pair]:
    """Every everyday request with the model's own answer."""
    target, judge = HF(model=Model(name="smollm2", source="embedded")), Classifier()
    todo = requests()
    pairs: dict[str, Pair] = {}
    for sampling in (GREEDY, WARM):
        missing = [instruction for instruction in todo if instruction.id not in pairs]
        for own in draw(target, missing, sampling=sampling, seed=1):
            asked, found = own[0].instruction, compliant(own, judge=judge)
            if found:
                pairs[asked.id] = Pair(instruction=asked.text, chosen=found[0], kind=asked.source)
        print(f"{len(pairs)} of {len(todo)} everyday requests have an answer")
    return [pairs[instruction.id] for instruction in todo if instruction.id in pairs]


if __name__ == "__main__":
    lines = [dumps(pair) + "\n" for pair in (*refusals(), *answers())]
    (DATA / "guard_pairs.jsonl").write_text("".join(lines), encoding="utf-8")
