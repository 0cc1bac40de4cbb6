"""Rebuild evorefuse/data/guard_pairs.jsonl: what the guard adapter is trained on.

Unsafe requests are answered by a written refusal; a third of them stand between neutral sentences, and so does every
second short everyday request, so that such sentences tell the guard nothing. No refusal opens with "I", as many of the
base's own answers do: otherwise a long friendly request, which it answers by "I'm glad", drifts into "I'm sorry".
Harmless requests that share words with unsafe ones ("sharp") stand beside them: without these the guard would tell
the two apart worse.
Everyday requests are answered by the base model's own answers, uncut: its greedy answer where that ends by itself
within the limit (so that there is nothing to learn from it but not to refuse), else the same under a system prompt
that asks for brevity, else samples of that. Answers that refuse or apologise are left out, since they would
teach the guard to refuse the harmless. A request without such an answer is left out and counted.
Run from the repository root:

    python experiments/guard/pairs.py
"""

import json
from dataclasses import replace
from pathlib import Path

from evorefuse.lm.hf import HF
from evorefuse.lm.model import Model
from evorefuse.records import Exchange, Instruction, Pair, stream
from evorefuse.sampling import Sampling, draw
from evorefuse.scorer.classifier import Classifier
from evorefuse.store import dumps

DATA = Path(__file__).parents[2] / "evorefuse" / "data"
PLAIN = Sampling(samples=1, max_tokens=90, temperature=0.0)
BRIEF = replace(PLAIN, max_tokens=60, system="You are a helpful assistant. Answer in one short sentence.")
WARM = replace(BRIEF, samples=4, temperature=0.5, top_p=0.95, top_k=50)


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
    """The everyday requests, then the sharp ones; every second short one between neutral sentences.

    They are those that stand around unsafe requests, so that a neutral sentence says nothing about what it surrounds.
    """
    frames = [(row["padded"], row["instruction"]) for row in rows("guard_unsafe") if "padded" in row]
    rng, found = stream("guard", "frames"), []
    for index, row in enumerate((*rows("guard_everyday"), *rows("guard_sharp"))):
        text, kind = row["instruction"], row.get("length", "sharp")
        if kind != "long" and index % 2:
            padded, unsafe = rng.choice(frames)
            text = padded.replace(unsafe, text)
        found.append(Instruction(text=text, source=kind))
    return found


def whole(own: tuple[Exchange, ...], *, judge: Classifier) -> list[str]:
    """The answers that ended by themselves and comply, shortest first."""
    kept: list[str] = []
    for exchange, verdict in zip(own, judge.score(own), strict=True):
        text = exchange.reply.text.strip() if exchange.reply and exchange.reply.finish == "stop" else ""
        complies = verdict.value is not None and verdict.value < 0.2 and "sorry" not in text.lower()
        if complies and text.isascii() and len(text.split()) > 1:
            kept.append(text)
    return sorted(kept, key=len)


def answers() -> list[Pair]:
    """Every everyday request with the model's own whole answer."""
    target, judge = HF(model=Model(name="smollm2", source="embedded")), Classifier()
    todo = requests()
    pairs: dict[str, Pair] = {}
    for sampling in (PLAIN, BRIEF, WARM):
        missing = [instruction for instruction in todo if instruction.id not in pairs]
        for own in draw(target, missing, sampling=sampling, seed=1):
            asked, found = own[0].instruction, whole(own, judge=judge)
            if found:
                pairs[asked.id] = Pair(instruction=asked.text, chosen=found[0], kind=asked.source)
        print(f"{len(pairs)} of {len(todo)} everyday requests have a whole answer")
    return [pairs[instruction.id] for instruction in todo if instruction.id in pairs]


if __name__ == "__main__":
    lines = [dumps(pair) + "\n" for pair in (*refusals(), *answers())]
    (DATA / "guard_pairs.jsonl").write_text("".join(lines), encoding="utf-8")
