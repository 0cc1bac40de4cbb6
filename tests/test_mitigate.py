"""What the adapter is trained on is what the engine will ask: the same tokens up to the answer."""

from dataclasses import replace
from typing import Any, cast

import pytest
import torch
from datasets import Dataset
from tiny import save_model

from evorefuse.lm.load import load_model, load_tokenizer
from evorefuse.lm.model import Model
from evorefuse.lm.render import DATE, encode, render
from evorefuse.progress import Progress
from evorefuse.records import Message, Pair
from evorefuse.stages import mitigate
from evorefuse.stages.mitigate import Settings, _trainer
from evorefuse.store import Store, dumps
from evorefuse.tracker.files import Files

DATED = (
    "{{ bos_token }}{% if date_string is not defined %}{% set date_string = 'fire fire' %}{% endif %}"
    "<system> {{ date_string.replace('26 Jul 2024', 'the cat') }} "
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)
CFG = Settings(
    pairs="", epochs=1, learning_rate=1e-3, batch=1, accumulation=1, warmup=0.0, max_length=64, rank=2, alpha=4
)


def flat(network: Any) -> torch.Tensor:
    return torch.cat([weight.detach().flatten() for weight in network.parameters()])


def trained_on(base: Model, pair: Pair, folder: Any) -> tuple[list[int], list[int]]:
    """The token ids of the prompt and of the part that the loss is on."""
    with Progress(quiet=True).task("", total=1) as task:
        trainer = _trainer(load_tokenizer(base), [pair], cfg=CFG, base=base, seed=1, folder=folder, task=task)
    row = cast(dict[str, Any], cast(Dataset, trainer.train_dataset)[0])
    first = next(place for place, label in enumerate(row["labels"]) if label != -100)
    return row["input_ids"][:first], row["input_ids"][first:]


@pytest.mark.parametrize(("own", "of_pair"), [(None, None), ("write a poem", None), ("write a poem", "help")])
def test_the_prompt_is_the_one_that_the_engine_renders(tmp_path, own, of_pair):
    """With a template that prints the date, and with the system prompt of the model or of the pair."""
    base = Model(
        name="tiny", source="path", id=str(save_model(tmp_path / "m", "llama_gqa")), system=own, chat_template=DATED
    )
    pair = Pair(instruction="how do i bake a cake", chosen="sure here is a cake", system=of_pair)
    tokenizer = load_tokenizer(base)
    user = Message(role="user", content=pair.instruction)
    asked = render(tokenizer, [user], system=own if of_pair is None else of_pair)
    prompt, answer = trained_on(base, pair, tmp_path)
    assert prompt == encode(tokenizer, asked)
    assert "the cat" in asked, f"the template prints {DATE}"
    assert answer[:5] == encode(tokenizer, pair.chosen)


def test_strength_multiplies_the_update_and_nothing_else(tmp_path):
    """The merged weights move by ``strength`` times as much, on a straight line from the base."""
    base = Model(name="tiny", source="path", id=str(save_model(tmp_path / "m", "llama_gqa")), chat_template=DATED)
    pairs = [Pair(instruction="how do i bake a cake", chosen="sorry cannot help")] * 4
    (tmp_path / "pairs.jsonl").write_text("".join(dumps(pair) + "\n" for pair in pairs))
    weights = [flat(load_model(base, adapter=None, device=torch.device("cpu"), dtype=torch.float32))]
    for strength in (1.0, 1.5):
        cfg = replace(CFG, pairs=str(tmp_path / "pairs.jsonl"), strength=strength, learning_rate=1e-2)
        store = Store(tmp_path / str(strength))
        mitigate.run(cfg=cfg, seed=1, base=base, store=store, tracker=Files(), progress=Progress(quiet=True))
        adapter = store.folder / "adapter"
        weights.append(flat(load_model(base, adapter=adapter, device=torch.device("cpu"), dtype=torch.float32)))
    plain, once, more = weights
    assert (once - plain).norm() > 0.1
    assert torch.allclose(more - plain, 1.5 * (once - plain), atol=1e-5)


@pytest.mark.parametrize("strength", [0.0, -1.0, float("nan")])
def test_a_strength_that_undoes_the_training_is_refused(strength):
    with pytest.raises(ValueError, match=r"mitigate\.strength must be above 0"):
        replace(CFG, strength=strength)
