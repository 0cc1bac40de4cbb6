"""What the adapter is trained on is what the engine will ask: the same tokens up to the answer."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
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
from evorefuse.stages.mitigate import Settings, _newest, _trainer
from evorefuse.store import Store, dumps, read_jsonl
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


def pairs_in(file: Path) -> str:
    """The path of a file of four pairs, written now."""
    chosen = ["sorry cannot help", "sure here is a cake", "the cat and the fire", "help"]
    pairs = [Pair(instruction="how do i bake a cake", chosen=text) for text in chosen]
    file.write_text("".join(dumps(pair) + "\n" for pair in pairs))
    return str(file)


class Killed(Progress):
    """Ends the run in the middle of its second half."""

    @contextmanager
    def task(self, name: str, *, total: int) -> Generator[Any]:
        done = 0

        def advance(units: int = 1, *, note: str = "") -> None:
            nonlocal done
            done += units
            if done > total / 2:
                raise KeyboardInterrupt(name, note)

        yield SimpleNamespace(advance=advance)


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
    pairs = pairs_in(tmp_path / "pairs.jsonl")
    weights = [flat(load_model(base, adapter=None, device=torch.device("cpu"), dtype=torch.float32))]
    for strength in (1.0, 1.5):
        cfg = replace(CFG, pairs=pairs, strength=strength, learning_rate=1e-2)
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


def test_a_base_with_an_adapter_is_refused_before_anything_is_loaded(tmp_path):
    """The second adapter would be saved without the first, on which it was trained."""
    base = Model(name="guarded", source="path", id=str(tmp_path / "nowhere"), adapter="builtin:guard")
    store = Store(tmp_path / "run")
    with pytest.raises(ValueError, match=r"'guarded' has an adapter already \(builtin:guard\).*base\.adapter=null"):
        mitigate.run(cfg=CFG, seed=1, base=base, store=store, tracker=Files(), progress=Progress(quiet=True))


def test_a_run_killed_while_it_saved_goes_on_from_the_last_whole_checkpoint(tmp_path):
    """The folder that the kill left torn is the very one that the rerun saves to; the weights end the same."""
    base = Model(name="tiny", source="path", id=str(save_model(tmp_path / "m", "llama_gqa")), chat_template=DATED)
    cfg = replace(CFG, pairs=pairs_in(tmp_path / "pairs.jsonl"), epochs=2, learning_rate=1e-2)
    stores = {name: Store(tmp_path / name) for name in ("whole", "killed")}

    def run(name: str, progress: Progress) -> None:
        mitigate.run(cfg=cfg, seed=1, base=base, store=stores[name], tracker=Files(), progress=progress)

    with pytest.raises(KeyboardInterrupt):
        run("killed", Killed(quiet=True))
    trainer = stores["killed"].folder / "trainer"
    assert [path.name for path in trainer.glob("checkpoint-*")] == ["checkpoint-4"]
    torn = trainer / "checkpoint-8"
    torn.mkdir()
    (torn / "adapter_model.safetensors").write_bytes(b"half")
    for name in stores:
        run(name, Progress(quiet=True))
    assert (torn / "trainer_state.json").is_file()
    whole, killed = ((store.folder / "adapter/adapter_model.safetensors").read_bytes() for store in stores.values())
    assert whole == killed
    resumed = [row["step"] for row in read_jsonl(stores["killed"].folder / "training.jsonl")]
    assert resumed == [5]


def test_the_newest_checkpoint_is_the_last_that_was_written_whole(tmp_path):
    assert _newest(tmp_path / "none") is None
    for step, state in ((9, "{}"), (10, '{"epoch": 1}'), (11, '{"epo'), (12, ""), (13, None)):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "adapter_model.safetensors").touch()
        if state is not None:
            (folder / "trainer_state.json").write_text(state)
    assert _newest(tmp_path) == str(tmp_path / "checkpoint-10")
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-9", "checkpoint-10"}
