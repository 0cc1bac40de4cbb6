"""What the scripted server says: pure functions of a request's body. All of it is harmless."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I cannot assist with that request.",
    "I'm sorry, but I'm not able to help with this.",
)
ANSWERS = (
    "Sure! Start with the simple part, and the rest follows.",
    "Of course. Take your time, go step by step, and check the result.",
    "Happy to help: here is a short outline that you can build on.",
    "Good question. It depends a little on where you are, but mostly on patience.",
)
OPENINGS = ("In a friendly game", "For a school play", "In a children's story", "For the village newsletter",
            "At the pub quiz", "In a crossword", "For a radio sketch", "On a picnic")  # fmt: skip
COLOURS = ("amber", "blue", "copper", "green", "ivory", "lilac", "ochre", "red", "silver", "white")
ANIMALS = ("badger", "crane", "dolphin", "finch", "heron", "lynx", "otter", "robin", "stoat", "wren")
FIELDS = ("instruction", "reason", "verdict", "label", "why", "tactic", "mechanism")
CHOICES = {"verdict": ("safe", "debatable", "unsafe"), "label": ("full", "partial", "compliance", "other")}


def digest(body: Mapping[str, Any]) -> str:
    """The key of a request: SHA-256 of its body in canonical JSON."""
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def draw(*keys: object) -> float:
    """A number in [0, 1) that depends on the keys alone."""
    raw = hashlib.sha256("\x1f".join(map(str, keys)).encode()).digest()
    return int.from_bytes(raw[:7], "big") / 2**56


def pick(options: Any, *keys: object) -> Any:
    return options[int(draw(*keys) * len(options))]


def prompt_of(body: Mapping[str, Any]) -> str:
    turns = [str(turn.get("content", "")) for turn in body.get("messages", []) if turn.get("role") == "user"]
    return turns[-1] if turns else ""


def identity_of(body: Mapping[str, Any]) -> str:
    """What the reply hangs on: everything, but at temperature 0 not the seed."""
    greedy = not body.get("temperature", 1)
    return digest({name: value for name, value in body.items() if not (greedy and name == "seed")})


def plain(body: Mapping[str, Any]) -> str:
    """A short answer, now and then a refusal."""
    key = identity_of(body)
    return pick(REFUSALS, key, "which") if draw(key, "refuse") < 0.4 else pick(ANSWERS, key, "which")


def mutator_judge(body: Mapping[str, Any]) -> str:
    """An object where one is asked for, by a schema or by its fields' names in the prompt; else a short answer."""
    wanted = body.get("response_format") or {}
    schema = (wanted.get("json_schema") or {}).get("schema")
    if schema is None:
        asked = "\n".join(str(turn.get("content", "")) for turn in body.get("messages", []))
        names = [name for name in FIELDS if f'"{name}"' in asked]
        if not names:
            return plain(body)
        known = {name: {"type": "string", **({"enum": CHOICES[name]} if name in CHOICES else {})} for name in names}
        schema = {"type": "object", "properties": known, "required": names}
    return json.dumps(filled(schema, schema, body=body, name=""), ensure_ascii=False)


def filled(schema: Mapping[str, Any], root: Mapping[str, Any], *, body: Mapping[str, Any], name: str) -> Any:
    """A value that fits ``schema``."""
    key = identity_of(body)
    if "$ref" in schema:
        return filled(root["$defs"][schema["$ref"].rsplit("/", 1)[-1]], root, body=body, name=name)
    for union in ("anyOf", "oneOf", "allOf"):
        if union in schema:
            return filled(schema[union][0], root, body=body, name=name)
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return chosen(schema["enum"], key, name)
    kind = schema.get("type", "object" if "properties" in schema else "string")
    if kind == "object":
        return {own: filled(sub, root, body=body, name=own) for own, sub in schema.get("properties", {}).items()}
    if kind == "array":
        return [filled(schema.get("items", {}), root, body=body, name=f"{name}{i}") for i in range(2)]
    if kind == "boolean":
        return draw(key, name) < 0.5
    if kind in ("integer", "number"):
        low, high = schema.get("minimum", 0), schema.get("maximum", 1 if kind == "number" else 10)
        value = low + draw(key, name) * (high - low)
        return round(value) if kind == "integer" else round(value, 4)
    return words(name, prompt_of(body), key)


def chosen(options: Any, key: str, name: str) -> Any:
    """Mostly `safe` where that is to be had, mostly the first elsewhere."""
    usual = "safe" if "safe" in options else options[0]
    return usual if draw(key, name, "usual") < 0.6 else pick(list(options), key, name)


def words(name: str, prompt: str, key: str) -> str:
    """A harmless text for one field, unlike any other prompt's."""
    pair = f"{pick(COLOURS, key, name, 'colour')} {pick(ANIMALS, key, name, 'animal')}"
    number = int(draw(key, name, "number") * 100_000)
    if name == "instruction":
        return f"{pick(OPENINGS, key)} about a {pair}, round {number}: {seed_of(prompt)}"
    if name in ("tactic", "mechanism"):
        return f"{name} of the {pair}: a harmless word that sounds alarming"
    return f"It is about a {pair} ({number}) and wishes nobody any harm."


def seed_of(prompt: str) -> str:
    """The instruction that a prompt speaks of: in tags, in quotes, or its last line; at most 160 characters."""
    tagged = re.findall(r"<(instruction|seed|text|first|second|parent)[^<>]*>\s*(\S.*?)\s*</\1>", prompt, re.DOTALL)
    quoted = re.findall(r'"([^"\n]{12,})"', prompt)
    lines = [line.strip() for line in prompt.splitlines() if line.strip()]
    found = tagged[-1][1] if tagged else quoted[-1] if quoted else lines[-1] if lines else "How do I bake bread?"
    return re.sub(r"^(?:[\w' ]+ about a \w+ \w+, round \d+: )+", "", " ".join(found.split()))[:160]


def choice_of(
    body: Mapping[str, Any], reply: Callable[[Mapping[str, Any]], str], *, index: int, nonce: str, what: str
) -> dict[str, Any]:
    """One choice of a completion, cut at ``max_tokens`` words, with log-probabilities where they are asked for."""
    asked = {**body, "_choice": index} if index else body
    text = reply({**asked, "_nonce": nonce} if nonce else asked)
    tokens = re.findall(r"\S+\s*|\s+", text)
    limit = int(body.get("max_tokens") or body.get("max_completion_tokens") or 10_000)
    finish = "stop" if len(tokens) <= limit else "length"
    tokens = tokens[:limit]
    if what == "length":
        tokens, finish = tokens[: max(1, len(tokens) // 2)], "length"
    if what == "content_filter":
        tokens, finish = [], "content_filter"
    content = None
    if body.get("logprobs") and what != "no_logprobs":
        key = digest(body)
        content = [
            {"token": token, "logprob": round(-2 * draw(key, place), 6), "bytes": None, "top_logprobs": []}
            for place, token in enumerate(tokens)
        ]
    return {
        "index": index,
        "message": {"role": "assistant", "content": "".join(tokens), "refusal": None},
        "logprobs": None if content is None else {"content": content},
        "finish_reason": finish,
    }


SCRIPTS: dict[str, Callable[[Mapping[str, Any]], str]] = {"mutator_judge": mutator_judge, "plain": plain}
