"""What stands in for models in a dry run: replies of full length that parse, at no cost, and every request counted."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evorefuse.ledger import Cost, Ledger
from evorefuse.records import Reply, Request, Usage, derive, stream
from evorefuse.store import encode

FAVOURABLE = ("safe", "full")  # what lets a search go on, so that the count is an upper bound
_DEPTH = 8  # how deep schemas may nest
_WORDS = (
    "apple", "autumn", "basket", "bench", "bread", "bridge", "candle", "cheese", "cloud", "coat", "copper", "corner",
    "cup", "door", "engine", "farm", "fence", "field", "flour", "forest", "garden", "glass", "harbour", "hat", "hill",
    "island", "kettle", "kitchen", "ladder", "lamp", "lemon", "letter", "market", "meadow", "mirror", "morning",
    "mountain", "music", "needle", "north", "oak", "orange", "paper", "pebble", "pepper", "piano", "pillow", "planet",
    "pocket", "rain", "river", "road", "salt", "school", "shelf", "silver", "spoon", "summer", "table", "thread",
    "tower", "village", "window", "winter",
)  # fmt: skip
_LENGTH = 30  # words of a text: what instructions and reasons typically have


class Rehearsal:
    """Stands in for one model: counts what it is asked under that model's name and price."""

    def __init__(self, *, model: Any, ledger: Ledger, price: tuple[float, float]) -> None:
        """Stand in for ``model``, a record with a ``name``; ``price`` is dollars a million tokens, read and written."""
        self.lm = self
        self.price = price
        self.spec = model
        self._name = str(getattr(model, "name", None) or type(model).__name__)
        self._system = str(getattr(model, "system", None) or "")
        self._ledger = ledger

    @property
    def identity(self) -> Mapping[str, Any]:
        """The model's name, and that this is a rehearsal."""
        return {"name": self._name, "rehearsal": True}

    def complete(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply a request, in order: a text of its own for each, which fits the schema where there is one."""
        return [self._reply(request) for request in requests]

    def _reply(self, request: Request) -> Reply:
        cost = Cost.likely(request, price=self.price, system=self._system)
        self._ledger.count(self._name, cost)
        seed = derive("rehearsal", json.dumps(encode(request), sort_keys=True))
        if request.schema is None:
            text = _text(seed, words=max(1, min(_LENGTH, request.max_tokens)))
        else:
            schema = json.loads(request.schema)
            text = json.dumps(_value(schema, schema, seed, 0), ensure_ascii=False)
        return Reply(
            text=text,
            finish="stop",
            logprobs=(-0.5,) * request.max_tokens if request.logprobs else None,
            usage=Usage(prompt_tokens=cost.read, completion_tokens=cost.written),
        )


class Scatter:
    """Stands in for an embedder: a point for each text that says nothing of its meaning."""

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors [N, 64], one a text, equal for equal texts."""
        rows = [np.random.default_rng(derive("scatter", text)).normal(size=64) for text in texts]
        points = np.array(rows, dtype=np.float32).reshape(len(texts), 64)
        return points / np.linalg.norm(points, axis=1, keepdims=True)


def _text(seed: int, *, words: int) -> str:
    """Harmless words, always the same for a seed."""
    chosen = stream(seed).choices(_WORDS, k=words)
    return f"Tell me about the {' '.join(chosen[3:])}.".replace(" .", ".") if words > 3 else " ".join(chosen)


def _value(schema: Any, whole: Any, seed: int, depth: int) -> Any:
    """A value that fits a JSON schema, as far as its plain words go; None where it says nothing."""
    schema = _resolved(schema, whole)
    if not isinstance(schema, Mapping) or depth > _DEPTH:
        return None
    if "const" in schema:
        return schema["const"]
    if schema.get("enum"):
        return next((wish for wish in FAVOURABLE if wish in schema["enum"]), schema["enum"][0])
    for choice in ("anyOf", "oneOf", "allOf"):
        if options := [_resolved(option, whole) for option in schema.get(choice, ())]:
            useful = [option for option in options if option.get("type") != "null"]
            return _value((useful or options)[0], whole, seed, depth + 1)
    kind = schema.get("type", "object" if "properties" in schema else None)
    kind = next((one for one in kind if one != "null"), None) if isinstance(kind, list) else kind
    if kind == "object":
        fields: Mapping[str, Any] = schema.get("properties", {})
        names = schema.get("required", list(fields))
        return {name: _value(fields.get(name, {}), whole, derive(seed, name), depth + 1) for name in names}
    if kind == "array":
        size = max(1, schema.get("minItems", 1))
        return [_value(schema.get("items", {}), whole, derive(seed, i), depth + 1) for i in range(size)]
    return _scalar(kind, schema, seed)


def _scalar(kind: Any, schema: Mapping[str, Any], seed: int) -> Any:
    if kind == "string":
        text = _text(seed, words=_LENGTH).ljust(schema.get("minLength", 0), "x")
        return text[: schema["maxLength"]] if "maxLength" in schema else text
    if kind in ("integer", "number"):
        low = schema.get("minimum", schema.get("exclusiveMinimum", 0) + ("exclusiveMinimum" in schema))
        return min(low, schema["maximum"]) if "maximum" in schema else low
    return True if kind == "boolean" else None


def _resolved(schema: Any, whole: Any) -> Any:
    """A schema with its reference into the same document followed."""
    reference = schema.get("$ref") if isinstance(schema, Mapping) else None
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return schema
    found = whole
    for step in reference[2:].split("/"):
        found = found.get(step, {}) if isinstance(found, Mapping) else {}
    return found
