"""Fine-tuning data: the loss is on the answer's tokens alone, and on as many as asked for."""

import pytest
from tiny import engine, save_model

from evorefuse.records import Message, Pair
from evorefuse.stages.mitigate import tokenize

PAIR = Pair(instruction="how do i bake a cake", chosen="sure here is the cake", kind="short")


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    return engine(save_model(tmp_path_factory.mktemp("llama"), "llama_gqa"))


@pytest.mark.parametrize("system", [None, "", "help"])
def test_the_prompt_is_the_engines_own_and_carries_no_loss(lm, system):
    pair = Pair(instruction=PAIR.instruction, chosen=PAIR.chosen, system=system)
    row = tokenize(lm.tokenizer, pair)
    turns = () if system is None else (Message(role="system", content=system),)
    prompt = lm.prompt_ids((*turns, Message(role="user", content=pair.instruction)))
    assert row["input_ids"][: len(prompt)] == prompt, "training and inference see one prompt"
    assert row["labels"][: len(prompt)] == [-100] * len(prompt)
    answer = [*lm.token_ids(pair.chosen), lm.tokenizer.eos_token_id]
    assert row["input_ids"][len(prompt) :] == row["labels"][len(prompt) :] == answer


@pytest.mark.parametrize("limit", [1, 3, 6, 50])
def test_a_limited_answer_ends_early_and_without_the_end_of_text(lm, limit):
    whole = [label for label in tokenize(lm.tokenizer, PAIR)["labels"] if label != -100]
    row = tokenize(lm.tokenizer, PAIR, answer_tokens=limit)
    labels = [label for label in row["labels"] if label != -100]
    assert labels == whole[:limit]
    assert row["input_ids"][-len(labels) :] == labels
    assert (labels[-1] == lm.tokenizer.eos_token_id) == (limit >= len(whole)), "a cut teaches nobody to stop"


def test_an_empty_loss_is_impossible(lm):
    assert all(any(label != -100 for label in tokenize(lm.tokenizer, PAIR, answer_tokens=n)["labels"]) for n in (1, 2))
