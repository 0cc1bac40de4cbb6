"""Rebuild evorefuse/data/guard_pairs.jsonl: what the guard adapter is trained on.

Unsafe requests are answered by a written refusal (a third of them between neutral sentences), everyday requests by the
base model's own answer, uncut: the shortest of several samples that ended by themselves. Where none ended within the
limit, the request is put once more under a system prompt that asks for brevity; what is still without a whole answer is
left out and counted. Run from the repository root:

    python experiments/guard/pairs.py
"""

import json
from dataclasses import replace
from pathlib import Path

from evorefuse.lm.hf import HF
from evorefuse.lm.model import Model
from evorefuse.records import Instruction, Pair, stream
from evorefuse.sampling import Sampling, draw
from evorefuse.store import dumps

DATA = Path(__file__).parents[2] / "evorefuse" / "data"
PLAIN = Sampling(samples=3, max_tokens=160, temperature=0.7, top_p=0.95, top_k=50)
BRIEF = replace(PLAIN, samples=5, system="You are a helpful assistant. Answer in one, two or three short sentences.")


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


def answers() -> list[Pair]:
    """Every everyday request with the model's own shortest whole answer."""
    target = HF(model=Model(name="smollm2", source="embedded"))
    todo = [Instruction(text=row["instruction"], source=row["length"]) for row in rows("guard_everyday")]
    found: dict[str, Pair] = {}
    for sampling in (PLAIN, BRIEF):
        missing = [instruction for instruction in todo if instruction.id not in found]
        for own in draw(target, missing, sampling=sampling, seed=1):
            whole = [x.reply.text.strip() for x in own if x.reply and x.reply.finish == "stop" and x.reply.text.strip()]
            if whole:
                asked = own[0].instruction
                found[asked.id] = Pair(instruction=asked.text, chosen=min(whole, key=len), kind=asked.source)
        print(f"{len(found)} of {len(todo)} everyday requests have a whole answer")
    return [found[instruction.id] for instruction in todo if instruction.id in found]


if __name__ == "__main__":
    lines = [dumps(pair) + "\n" for pair in (*refusals(), *answers())]
    (DATA / "guard_pairs.jsonl").write_text("".join(lines), encoding="utf-8")
