"""Asking for fields: JSON, else JSON within prose, else tagged text, else asked once more, else a counted failure.

Nothing is guessed: a reply that holds two different answers, a broken object, a key twice, or an answer that stands in
the question already, is none. The caller's prompt says the format in words; ``Request.schema`` says it to servers that
can be held to one.
"""

import json
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Generic, TypeVar, cast

from pydantic import AfterValidator, StringConstraints, TypeAdapter, ValidationError

from evorefuse.ports import LM
from evorefuse.records import Message, Reply, Request, derive

T = TypeVar("T")

MAX_CHARACTERS = 50_000  # of a reply that is looked at; longer ones are runaways
_OPENING = re.compile(r'\{\s*"')
_UNSUPPORTED = ("title", "minLength", "maxLength", "pattern")  # servers refuse a schema with words they do not know


def _readable(text: str) -> str:
    """The text; an error where it holds no word or digit, or control characters."""
    if any(unicodedata.category(char) == "Cc" and char not in "\n\t\r" for char in text):
        raise ValueError("holds control characters")
    if not any(char.isalnum() for char in text):
        raise ValueError("holds no words")
    return text


Text = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, max_length=10_000),
    AfterValidator(_readable),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """What is asked, and the seed of its sampling."""

    messages: tuple[Message, ...]
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer(Generic[T]):
    """The fields that a model answered with, or why there are none."""

    value: T | None = None
    error: str | None = None


def ask(
    lm: LM,
    prompts: Sequence[Prompt],
    *,
    kind: type[T],
    temperature: float = 0.0,
    top_p: float = 1.0,
    max_tokens: int = 400,
) -> list[Answer[T]]:
    """One answer a prompt, in order; equal prompts are asked once, and those that strayed once more, in one batch.

    ``kind`` is a dataclass (or pydantic model) whose fields are texts: ``Text``, or a Literal. Unknown fields of an
    answer are dropped. ``max_tokens`` counts new tokens. A reply that failed or was blocked is not asked for again.
    """
    adapter = TypeAdapter(kind)
    schema = _schema(adapter)
    names = tuple(schema["required"])
    once = list(dict.fromkeys(prompts))
    requests = [
        Request(
            messages=prompt.messages,
            temperature=temperature,
            top_p=top_p,
            max_tokens=max_tokens,
            seed=prompt.seed,
            logprobs=False,
            schema=json.dumps(schema, sort_keys=True, separators=(",", ":")),
        )
        for prompt in once
    ]
    replies = lm.complete(requests) if requests else []
    answers = [_read(r, prompt=p, adapter=adapter, names=names) for p, r in zip(once, replies, strict=True)]
    strays = [i for i, reply in enumerate(replies) if answers[i].value is None and _has_text(reply)]
    again = [_again(requests[i], replies[i], problem=str(answers[i].error), names=names) for i in strays]
    seconds = lm.complete(again) if again else []
    for i, reply in zip(strays, seconds, strict=True):
        answers[i] = _read(reply, prompt=once[i], adapter=adapter, names=names)
    found = dict(zip(once, answers, strict=True))
    return [found[prompt] for prompt in prompts]


def _schema(adapter: TypeAdapter[Any]) -> dict[str, Any]:
    """The JSON schema of the fields, in the few words that every server knows."""
    whole: dict[str, dict[str, Any]] = adapter.json_schema()["properties"]
    fields = {
        name: {key: value for key, value in field.items() if key not in _UNSUPPORTED} for name, field in whole.items()
    }
    return {"type": "object", "properties": fields, "required": list(fields), "additionalProperties": False}


def _again(request: Request, reply: Reply, *, problem: str, names: Sequence[str]) -> Request:
    """The request with the reply that strayed, and what was wrong with it."""
    fields = ", ".join(f'"{name}"' for name in names)
    turns = (
        Message(role="assistant", content=reply.text.strip()[:2000] or "(empty)"),
        Message(
            role="user",
            content=f"This cannot be used: {problem}. Answer again with one JSON object and nothing else, with the "
            f"fields {fields}.",
        ),
    )
    return replace(request, messages=(*request.messages, *turns), seed=derive(request.seed, "again"), sample=1)


def _has_text(reply: Reply) -> bool:
    return reply.finish in ("stop", "length") and reply.error is None


def _read(reply: Reply, *, prompt: Prompt, adapter: TypeAdapter[T], names: Sequence[str]) -> Answer[T]:
    """The answer in a reply, or the cause of there being none."""
    if not _has_text(reply):
        blocked = reply.finish == "blocked"
        return Answer(error=reply.error or ("blocked by provider" if blocked else "the request failed"))
    if len(reply.text) > MAX_CHARACTERS:
        return Answer(error=f"the reply has {len(reply.text)} characters, more than {MAX_CHARACTERS}")
    question = "\n".join(message.content for message in prompt.messages)
    text = reply.text.rpartition("</think>")[2]
    problem = "it holds no JSON object that answers"
    valid: list[T] = []
    try:
        for fields in (*_objects(text, question=question), *_tagged(text, names, question=question)):
            valid.append(adapter.validate_python(fields))
    except ValidationError as error:
        faults = (f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors())
        problem = "; ".join(faults)[:300]
    except (ValueError, RecursionError) as error:
        problem = f"the JSON in it is broken ({str(error)[:100]})"
    else:
        if valid and all(value == valid[0] for value in valid):
            return Answer(value=valid[0])
        if valid:
            problem = "it holds answers that differ"
    return Answer(error=problem + (", cut off by max_tokens" if reply.finish == "length" else ""))


def _objects(text: str, *, question: str) -> Iterator[dict[str, Any]]:
    """The outermost JSON objects in a text, but for those that stand in the question.

    Raises:
        ValueError: at one that is cut off or broken.
        RecursionError: at one that is nested too deeply.
    """
    decoder = json.JSONDecoder(parse_constant=_refuse, object_pairs_hook=_unique)
    end = 0
    while opening := _OPENING.search(text, end):
        found, end = cast(tuple[dict[str, Any], int], decoder.raw_decode(text, opening.start()))
        if text[opening.start() : end] not in question:
            yield found


def _refuse(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        raise ValueError("a key stands twice")
    return fields


def _tagged(text: str, names: Sequence[str], *, question: str) -> Iterator[dict[str, str]]:
    """The fields of a text ``<name>…</name>``, where each stands in it exactly once and not in the question."""
    fields: dict[str, str] = {}
    for name in names:
        opened, closed = f"<{name}>", f"</{name}>"
        start, end = text.find(opened), text.find(closed)
        once = text.count(opened) == text.count(closed) == 1 and start < end
        if not once or text[start : end + len(closed)] in question:
            return
        fields[name] = text[start + len(opened) : end].strip()
    yield fields
