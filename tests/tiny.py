"""Tiny models of random weights with a tokenizer made on the spot, for the tests of the engine."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedTokenizerFast,
    set_seed,
)

from evorefuse.lm.hf import HF
from evorefuse.lm.model import Model
from evorefuse.records import Message, Request

WORDS = [
    "how", "do", "i", "bake", "a", "cake", "kill", "process", "the", "cat", "and", "write", "poem", "about", "fire",
    "sorry", "cannot", "help", "sure", "here", "is",
]  # fmt: skip
SPECIAL = ["<unk>", "<bos>", "<eos>", "<user>", "<system>", "<assistant>"]
TEMPLATE = (
    "{{ bos_token }}{% if messages[0]['role'] != 'system' %}<system> the cat {% endif %}"
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SIZES: dict[str, Any] = {
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32,
    "intermediate_size": 64, "max_position_embeddings": 96, "initializer_range": 0.3,
}  # fmt: skip
CONFIGS: dict[str, Callable[[int], Any]] = {
    "llama_gqa": lambda v: LlamaConfig(vocab_size=v, **SIZES),
    "gpt2": lambda v: GPT2Config(vocab_size=v, n_layer=2, n_head=4, n_embd=32, n_positions=96, initializer_range=0.2),
    "mistral_window": lambda v: MistralConfig(vocab_size=v, sliding_window=6, **SIZES),
}


def save_model(folder: Path, kind: str) -> Path:
    """A folder with a model of this kind, as ``save_pretrained`` writes it."""
    set_seed(0)
    config = CONFIGS[kind](_save_tokenizer(folder))
    config.eos_token_id, config.bos_token_id, config.pad_token_id = 2, 1, 2
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def engine(folder: Path, *, entropy: bool = False, batch_tokens: int = 16384, **model: Any) -> HF:
    """The engine over such a folder, in fp32 on the CPU; ``model`` sets other fields of the target."""
    spec = Model(name="tiny", source="path", id=str(folder), **model)
    return HF(model=spec, device="cpu", dtype="float32", entropy=entropy, batch_tokens=batch_tokens)


def ask(text: str, *, sample: int = 0, **settings: Any) -> Request:
    """A request of 20 tokens with a fixed seed."""
    messages = (Message(role="user", content=text),)
    return Request(messages=messages, sample=sample, seed=7, **{"max_tokens": 20, **settings})


def mixed_requests() -> list[Request]:
    """Sixteen requests: four prompts of different length, four samples each with limits of their own."""
    texts = ["how do i bake a cake", "kill the process", "write a poem about the fire and the cat and a cake", "help"]
    return [ask(text, sample=k, top_k=8, top_p=0.9, max_tokens=10 + 3 * k) for k in range(4) for text in texts]


def _save_tokenizer(folder: Path) -> int:
    vocabulary = {word: i for i, word in enumerate(SPECIAL + WORDS)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>")
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL[3:]})
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
    return len(vocabulary)
