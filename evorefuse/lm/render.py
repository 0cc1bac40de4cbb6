"""How a conversation becomes tokens: the one place where chat templates are rendered."""

import hashlib
from collections.abc import Sequence

from jinja2.exceptions import TemplateError
from transformers import PreTrainedTokenizerBase

from evorefuse.records import Message

DATE = "26 Jul 2024"
PROBE = (Message(role="user", content="Hello"),)


def render(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, system: str | None) -> str:
    """The prompt's text, up to where the assistant's answer starts.

    A system message of the conversation stands; without one ``system`` is put first, and None leaves it to the
    template. The date that some templates print is fixed, so that a prompt is the same tomorrow.

    Raises:
        ValueError: where there is no template, or the template refuses the conversation.
    """
    if tokenizer.chat_template is None:
        raise ValueError("the tokenizer has no chat template: set `target.chat_template` to a Jinja text")
    turns = [{"role": message.role, "content": message.content} for message in messages]
    if system is not None and not any(turn["role"] == "system" for turn in turns):
        turns.insert(0, {"role": "system", "content": system})
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, date_string=DATE)
    except TemplateError as error:
        raise ValueError(f"the chat template refuses this conversation: {error}") from error
    return str(text)


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The token ids of a rendered prompt: nothing is added, and of several leading BOS tokens one is kept."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]  # pyright: ignore[reportAssignmentType]
    while len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_token_id:
        ids = ids[1:]
    return ids


def template_hash(tokenizer: PreTrainedTokenizerBase) -> str:
    """The SHA-256 of the chat template's text."""
    return hashlib.sha256(str(tokenizer.chat_template).encode("utf-8")).hexdigest()


def rendering_hash(tokenizer: PreTrainedTokenizerBase, *, system: str | None) -> str:
    """The SHA-256 of a fixed conversation as it is put to the model: template, system prompt and all.

    Raises:
        ValueError: where the template refuses it, such as one that takes no system prompt.
    """
    return hashlib.sha256(render(tokenizer, PROBE, system=system).encode("utf-8", "surrogatepass")).hexdigest()
