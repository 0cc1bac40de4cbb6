"""What the doctor asks of a model that runs here: how a prompt is rendered, and whether a batch changes a reply."""

from collections.abc import Sequence

import torch

from evorefuse.checkup.check import OPEN, STORY, Patient, first_error, greedy, shown
from evorefuse.lm.hf import HF
from evorefuse.lm.render import DATE, PROBE, render
from evorefuse.records import Message, Reply

ANSWER = Message(role="assistant", content="Hi, this is an answer.")
MIXED = (
    "Hello",
    OPEN,
    STORY,
    "What is 2 + 2?",
    "Write three sentences on how bread is baked, how long it takes and what may go wrong with the yeast. " * 2,
)  # of very different length, so that all but one are padded
OPENING = " Sure, here is what I think of it."


def examine(patient: Patient, engine: HF) -> None:
    """The checks that only a local model allows."""
    try:
        _rendering(patient, engine)
    except ValueError as error:
        patient.note("prompt", "failed", str(error), cure=patient.setting("chat_template=<a Jinja text>"))
        return
    _batch(patient, engine)
    cure = "nothing to mend: replies are parsed and checked"
    patient.note("json", "ignored", "a local model is held to no schema", cure=cure, needed=False)
    most = engine.tokenizer.model_max_length
    told = f"; its tokenizer says {most}" if most < 10**9 else ""
    patient.note("context", "ok", f"{engine.context} tokens, prompt and reply together{told}")


def _rendering(patient: Patient, engine: HF) -> None:
    text = render(engine.tokenizer, PROBE, system=engine.spec.system)
    patient.note("prompt", "ok", shown(text, limit=400))
    _bos(patient, engine, text)
    _generation_prompt(patient, engine, text)
    _system(patient, engine, text)


def _bos(patient: Patient, engine: HF, text: str) -> None:
    """Does what goes into the model start with exactly one BOS token, where its tokenizer puts one at all?"""
    bos = engine.tokenizer.bos_token_id
    count = leading(engine.prompt_ids(PROBE), bos)
    written = leading(engine.tokenizer(text, add_special_tokens=False)["input_ids"], bos)
    expected = leading(engine.tokenizer("Hello")["input_ids"], bos)
    got = f"{count} at the start of the prompt (the template writes {written}, the tokenizer alone {expected})"
    cure = patient.setting("chat_template=<the template with one BOS>")
    if bos is None:
        patient.note("bos", "ok", "the tokenizer has none")
    else:
        patient.note("bos", "failed" if count > 1 or count < expected else "ok", got, cure=cure)


def _generation_prompt(patient: Patient, engine: HF, text: str) -> None:
    """Does the prompt end where an answer begins? A whole conversation, rendered, shows where that is."""
    whole = render(engine.tokenizer, (*PROBE, ANSWER), system=engine.spec.system)
    head = whole.partition(ANSWER.content)[0]
    turns = [{"role": turn.role, "content": turn.content} for turn in _with_system(PROBE, engine.spec.system)]
    bare = engine.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=False, date_string=DATE)
    tail = text.removeprefix(bare)
    if text != bare and tail.strip():
        patient.note("generation_prompt", "ok", f"the prompt ends in {shown(tail)}")
    elif text.rstrip() == head.rstrip():
        patient.note("generation_prompt", "ok", "the template itself ends where an answer begins")
    else:
        absent = head.removeprefix(text) if head.startswith(text) else head[-60:]
        cure = patient.setting("chat_template=<the template with {% if add_generation_prompt %}>")
        got = f"absent: the prompt ends in {shown(text[-40:])}, an answer would begin after {shown(absent)}"
        patient.note("generation_prompt", "failed", got, cure=cure)


def _system(patient: Patient, engine: HF, text: str) -> None:
    """Which system prompt is really sent?"""
    system = engine.spec.system
    if system:
        there = system.strip() in text
        cure = patient.setting("chat_template=<a template that takes a system prompt>")
        got = f"{shown(system)} is {'sent' if there else 'dropped by the template'}"
        patient.note("system_prompt", "ok" if there else "ignored", got, cure=cure)
        return
    try:
        empty = render(engine.tokenizer, PROBE, system="")
    except ValueError:
        patient.note("system_prompt", "ok", "none; the template takes none")
        return
    added = "" if system == "" else insertion(empty, text)
    if added.strip():
        got = f"the template puts in its own: {shown(added)}"
        patient.note("system_prompt", "ok", got)
    else:
        patient.note("system_prompt", "ok", "an explicit empty turn" if system == "" and text == empty else "none")


def _batch(patient: Patient, engine: HF) -> None:
    """Is a prompt answered the same in a batch of mixed length as alone, and are its probabilities the same?"""
    requests = [greedy(text, logprobs=True) for text in MIXED]
    together = patient.ask(requests)
    alone = [reply for request in requests for reply in patient.ask([request])]
    if fault := first_error([*together, *alone]):
        patient.note("batch", "unknown", fault)
        return
    prompts = [request.messages for request in requests]
    openings = [OPENING * (1 + i % 3) for i in range(len(prompts))]
    tokens = [len(engine.token_ids(opening)) for opening in openings]
    batched = engine.log_prob(prompts, openings)
    single = [engine.log_prob([one], [opening])[0] for one, opening in zip(prompts, openings, strict=True)]
    gaps = [abs(a - b) / n for a, b, n in zip(batched, single, tokens, strict=True)]
    gaps += [gap for a, b in zip(together, alone, strict=True) for gap in gaps_of(a, b)]
    same = sum(a.text == b.text for a, b in zip(together, alone, strict=True))
    half = engine.dtype != torch.float32
    tolerance = patient.effort.tolerance_half if half else patient.effort.tolerance
    sound = all(gap <= tolerance for gap in gaps)  # a gap that is no number is not sound
    got = (
        f"{same} of {len(requests)} greedy replies are the same in a batch as alone; log-probabilities differ by at "
        f"most {max(gaps):.2g} nats a token ({str(engine.dtype).removeprefix('torch.')}, tolerance {tolerance:g})"
    )
    cure = f"{'engine.dtype=float32' if half else 'engine.batch_tokens=1 (one prompt at a time)'}, or another model"
    patient.note("batch", "ok" if sound else "failed", got, cure=cure)


def gaps_of(one: Reply, other: Reply) -> list[float]:
    """The differences of two replies' log-probabilities, nats, token by token; none where their texts differ."""
    if one.text != other.text or one.logprobs is None or other.logprobs is None:
        return []
    return [abs(a - b) for a, b in zip(one.logprobs, other.logprobs, strict=False)]


def leading(ids: Sequence[int], token: int | None) -> int:
    """How many times ``token`` stands at the start."""
    return next((n for n, own in enumerate(ids) if own != token), len(ids)) if token is not None else 0


def insertion(without: str, text: str) -> str:
    """What ``text`` has between the start and the end that it shares with ``without``."""
    start = shared(without, text)
    end = shared(without[start:][::-1], text[start:][::-1])
    return text[start : len(text) - end]


def shared(one: str, other: str) -> int:
    """How many letters two texts share at their start."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _with_system(messages: Sequence[Message], system: str | None) -> list[Message]:
    first = [] if system is None else [Message(role="system", content=system)]
    return [*first, *messages]
