"""What the doctor asks of a served model: what its server honours, whatever the configuration says of it."""

import json
from collections.abc import Mapping
from copy import copy as twin
from dataclasses import replace
from typing import Any, Literal, cast
from urllib.parse import urlsplit

import httpx2

from evorefuse.checkup.check import (
    GREETING,
    OPEN,
    TARGETS,
    TRAINED,
    Patient,
    first_error,
    greedy,
    log_probabilities,
    randomness,
    sampled,
    shortened,
    shown,
)
from evorefuse.lm.openai import LOOPBACK, OpenAI
from evorefuse.records import Reply, derive

UNSEEN = "the server renders the template; it cannot be seen from here"
PULL = "What is the capital of France? Reply with the name of the city and nothing else."
ENUM = ("zinc", "copper")
SCHEMA: Mapping[str, Any] = {
    "type": "object",
    "properties": {"answer": {"type": "string", "enum": list(ENUM)}},
    "required": ["answer"],
    "additionalProperties": False,
}
PROSE = "Write one sentence about the sea, in plain prose and not in JSON."
CONTEXT = ("max_model_len", "context_length", "context_window", "max_context_length", "n_ctx_train")
Mode = Literal["schema", "object"]


def examine(patient: Patient, engine: OpenAI) -> None:
    """The checks that only a served model needs."""
    _system(patient, engine)
    for name in ("bos", "generation_prompt"):
        patient.note(name, "unknown", UNSEEN)
    targets = patient.plays(TARGETS)
    log_probabilities(
        patient,
        lm=variant(engine, logprobs=True),
        cure=f"{patient.setting('logprobs=false', roles=targets)}: then the fitness has no confidence term"
        if targets and engine.spec.logprobs
        else "",
        needed=bool(targets) and engine.spec.logprobs,
    )
    _choices(patient, engine)
    _json(patient, engine)
    drawing = "set what this server draws by in {} (see docs/serving.md), or temperature 0 and one sample"
    randomness(patient, lm=variant(engine, seed=True), cure=drawing.format(patient.setting("extra", roles=targets)))
    _top_k(patient, engine)
    _context(patient, engine)


def variant(engine: OpenAI, **changes: Any) -> OpenAI:
    """The same engine under the same limits, with other words on what its server honours."""
    other = twin(engine)
    other.spec = replace(engine.spec, **changes)
    return other


def _system(patient: Patient, engine: OpenAI) -> None:
    """The prompt as sent, and by the server's own count of tokens whether it adds a system prompt of its own."""
    system = engine.spec.system
    sent = [{"role": "user", "content": GREETING}]
    sent = sent if system is None else [{"role": "system", "content": system}, *sent]
    patient.note("prompt", "ok", f"as sent: {shortened(json.dumps(sent, ensure_ascii=False), limit=400)}")
    own = variant(engine, system=None)
    bare, empty, full = patient.ask(
        [greedy(GREETING, max_tokens=1, system=given) for given in (None, "", system or "")], lm=own
    )
    if fault := first_error([bare, empty, full]):
        patient.note("system_prompt", "unknown", fault)
        return
    without, turn, told = (reply.usage.prompt_tokens for reply in (bare, empty, full))
    counts = f"{without} prompt tokens with no system turn, {turn} with an empty one"
    if system:
        state, heard = ("ok", "sent") if told > turn else ("ignored", "sent, and not counted by the server")
        cure = patient.setting("system=null") + ", or another server"
        patient.note("system_prompt", state, f"{heard}: {shown(system)} ({counts}, {told} with it)", cure=cure)
    elif without > turn:
        added = f"the server adds its own where none is sent: {counts}"
        patient.note("system_prompt", "ok", added)
    elif without == turn:
        patient.note("system_prompt", "unknown", f"{counts}: it drops empty turns, or does not count")
    else:
        patient.note("system_prompt", "ok", f"none is added: {counts}")


def _choices(patient: Patient, engine: OpenAI) -> None:
    """Is ``n`` honoured? The engine asks for one choice at a time, so that each has its own seed: for information."""
    asking = OpenAI(model=replace(engine.spec, extra={**engine.spec.extra, "n": 2}), attempts=1)
    reply = patient.ask([greedy(GREETING, max_tokens=2)], lm=asking)[0]
    if reply.error is None:
        patient.note("n", "ignored", "1 choice where 2 were asked for", cure="nothing to mend: n is not used")
    elif "2 choices" in reply.error:
        patient.note("n", "ok", "2 choices where 2 were asked for (the engine asks for one at a time)")
    else:
        patient.note("n", "unknown", reply.error)


def _json(patient: Patient, engine: OpenAI) -> None:
    """Is a reply held to a schema, against a prompt that pulls elsewhere? Where not, to any JSON object?"""
    mode: Mode = "object" if engine.spec.json == "object" else "schema"
    held, got = _held(patient, engine, mode)
    asked = [role for role in patient.roles if role not in patient.plays(TRAINED)]
    if held:
        unused = "" if engine.spec.json != "text" else ", though json=text does not use it"
        patient.note("json", "ok", f"{mode} honoured{unused}: {got}")
        return
    objects = engine.spec.json == "schema" and _held(patient, engine, "object")[0]
    cure = patient.setting(f"json={'object' if objects else 'text'}", roles=asked or patient.roles)
    resting = bool(asked) and engine.spec.json != "text"
    patient.note("json", "ignored", f"{mode} asked for, got {got}", cure=cure if resting else "", needed=resting)


def _held(patient: Patient, engine: OpenAI, mode: Mode) -> tuple[bool, str]:
    """Whether a reply was held to the schema (or to any object), and what came."""
    request = greedy(PULL if mode == "schema" else PROSE, max_tokens=40)
    asked = replace(request, schema=json.dumps(SCHEMA, sort_keys=True))
    reply = patient.ask([asked], lm=variant(engine, json=mode))[0]
    if reply.error is not None:
        return False, f"a refusal: {reply.error}"
    return fits(reply, mode), shown(reply.text)


def fits(reply: Reply, mode: Mode) -> bool:
    """Whether a reply is one JSON object and nothing else; under ``schema`` the one field and one of its values."""
    try:
        found = json.loads(reply.text)
    except (ValueError, RecursionError):
        return False
    if not isinstance(found, dict):
        return False
    answer = cast(dict[str, Any], found)
    return mode == "object" or (list(answer) == ["answer"] and answer["answer"] in ENUM)


def _top_k(patient: Patient, engine: OpenAI) -> None:
    """Is ``top_k`` taken? With 1 nothing is left to draw, whatever the seed."""
    targets = patient.plays(TARGETS)
    resting, cure = bool(targets) and engine.spec.top_k, patient.setting("top_k=false", roles=targets)
    seeds = [derive(patient.seed, "top_k", i) for i in range(max(patient.effort.repeats, 2))]
    requests = [replace(sampled(OPEN, seed=seed), top_k=1) for seed in seeds]
    replies = patient.ask(requests, lm=variant(engine, top_k=True))
    kinds = len({reply.text for reply in replies})
    if fault := first_error(replies):
        patient.note("top_k", "ignored", f"refused: {fault}", cure=cure if resting else "", needed=resting)
    elif patient.state("sampling") != "ok":
        patient.note("top_k", "unknown", "nothing is drawn, so nothing hangs on it")
    elif kinds > 1:
        got = f"{kinds} different of {len(replies)} replies under top_k=1"
        patient.note("top_k", "ignored", got, cure=cure if resting else "", needed=resting)
    else:
        patient.note("top_k", "ok", "under top_k=1 all replies are the same")


def _context(patient: Patient, engine: OpenAI) -> None:
    """How many tokens does the model take? Some servers say so in their list of models."""
    url = f"{engine.spec.base_url.rstrip('/')}/models"
    key = engine.spec.secret()
    direct = urlsplit(url).hostname in LOOPBACK
    try:
        with httpx2.Client(trust_env=not direct, timeout=10.0) as client:
            response = client.get(url, headers={"Authorization": f"Bearer {key}"} if key else {})
            listed = response.json() if response.status_code == 200 else {}
    except (httpx2.HTTPError, ValueError) as error:
        patient.note("context", "unknown", f"{url}: {type(error).__name__}")
        return
    if response.status_code != 200:
        patient.note("context", "unknown", f"{url} answers {response.status_code}")
        return
    size = context_of(listed, engine.spec.id)
    if size is None:
        patient.note("context", "unknown", f"{url} does not say")
    else:
        patient.note("context", "ok", f"{size} tokens, prompt and reply together, as {url} says")


def context_of(listed: Any, model: str) -> int | None:
    """The context of ``model`` in a server's list of models, under any of the names that servers use."""
    data = cast(dict[str, Any], listed).get("data") if isinstance(listed, dict) else None
    entries = [cast(dict[str, Any], entry) for entry in cast(list[Any], data or []) if isinstance(entry, dict)]
    found = next((entry for entry in entries if entry.get("id") == model), {})
    words = {**found, **(found["meta"] if isinstance(found.get("meta"), dict) else {})}
    return next((words[name] for name in CONTEXT if isinstance(words.get(name), int)), None)
