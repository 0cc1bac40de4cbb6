"""Mitigate: fine-tune a LoRA adapter on pairs, with TRL and PEFT (here and nowhere else).

Writes `adapter/` (PEFT format, safetensors, with `base.json`: what it was trained on) and `training.jsonl`.
"""

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from datasets import Dataset, disable_progress_bars
from peft import LoraConfig, PeftModel
from transformers import PreTrainedTokenizerBase, TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from evorefuse.lm.load import load_model, load_tokenizer, pick_device
from evorefuse.lm.model import Model
from evorefuse.lm.render import DATE, render, template_hash
from evorefuse.ports import Tracker
from evorefuse.progress import Progress, Task
from evorefuse.records import Message, Metric, Pair, Summary, derive
from evorefuse.store import Store, decode, encode, read_jsonl


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The recipe; the paper's values stand beside each key in ``conf/mitigate/sft.yaml`` (EVOREFUSE §5.1).

    ``pairs`` is a JSONL file of Pair, or `builtin:guard`. ``batch`` counts sequences a forward pass, ``accumulation``
    the passes an update; ``warmup`` is a share of all updates; ``max_length`` is in tokens: longer pairs are left out
    and counted, since a cut answer teaches to stop early. ``packing`` fills sequences of ``max_length`` with whole
    pairs, each with its own positions and attention, so that no time goes to padding. The update is saved ``strength``
    times as strong as it was trained (task arithmetic's coefficient): it moves the level of what was learnt.

    Raises:
        ValueError: where ``strength`` is not above 0.
    """

    pairs: str
    epochs: float
    learning_rate: float
    batch: int
    accumulation: int
    warmup: float
    max_length: int
    rank: int
    alpha: int
    dropout: float = 0.0
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    precision: Literal["float32", "bfloat16"] = "float32"
    checkpointing: bool = False
    packing: bool = False
    strength: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a strength that would undo the training."""
        if not self.strength > 0:
            raise ValueError(f"mitigate.strength must be above 0, got {self.strength!r}")


def run(*, cfg: Settings, seed: int, base: Model, store: Store, tracker: Tracker, progress: Progress) -> Summary:
    """Train the adapter by SFT: the loss is on the answer alone, EOS included; resumes at the last whole epoch.

    Returns:
        The number of pairs by kind, those left out, the first and the last training loss (nats per token).

    Raises:
        FileNotFoundError: where ``cfg.pairs`` does not exist.
        ValueError: where ``base`` has an adapter already, or no pair fits ``cfg.max_length``.
    """
    if base.adapter is not None:
        raise ValueError(
            f"model {base.name!r} has an adapter already ({base.adapter}): one trained on top of it would be saved "
            f"alone, and used without it from then on. Train on the plain model: base.adapter=null"
        )
    tokenizer = load_tokenizer(base)
    pairs = _load(cfg)
    fitting = [pair for pair in pairs if _length(tokenizer, pair, base) <= cfg.max_length]
    if not fitting:
        raise ValueError(f"none of the {len(pairs)} pairs in {cfg.pairs} fits mitigate.max_length={cfg.max_length}")
    done = store.folder / "training.jsonl"
    if not done.is_file():
        with progress.task("fine-tune", total=100) as task:
            trainer = _trainer(tokenizer, fitting, cfg=cfg, base=base, seed=seed, folder=store.folder, task=task)
            trainer.train(resume_from_checkpoint=_newest(store.folder / "trainer"))
        _save(trainer.model, strength=cfg.strength, base=base, tokenizer=tokenizer, store=store)
        store.write_jsonl("training.jsonl", [row for row in trainer.state.log_history if "loss" in row])
    history = list(read_jsonl(done))
    for row in history:
        tracker.log("mitigate", {key: float(row[key]) for key in ("loss", "learning_rate")}, step=int(row["step"]))
    return _summary(history, pairs=fitting, n_left_out=len(pairs) - len(fitting))


def _load(cfg: Settings) -> list[Pair]:
    name = cfg.pairs.removeprefix("builtin:")
    shipped = Path(__file__).parents[1] / "data" / f"{name}_pairs.jsonl"
    path = shipped if cfg.pairs.startswith("builtin:") else Path(cfg.pairs).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"no training pairs at {path}: set mitigate.pairs to a JSONL file of pairs")
    return [decode(Pair, row) for row in read_jsonl(path)]


def _newest(folder: Path) -> str | None:
    """The newest whole checkpoint in the trainer's folder, or None; those that a kill left torn are removed."""
    whole: dict[int, Path] = {}
    for checkpoint in folder.glob("checkpoint-*"):
        if _is_whole(checkpoint):
            whole[int(checkpoint.name.rpartition("-")[2])] = checkpoint
        else:
            shutil.rmtree(checkpoint)
    return str(whole[max(whole)]) if whole else None


def _is_whole(checkpoint: Path) -> bool:
    """Whether all of a checkpoint was written: transformers writes its trainer_state.json last."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return False
    return True


def _turns(pair: Pair, base: Model) -> list[Message]:
    """The conversation that the answer follows, as the engine puts it: the pair's system prompt, else the base's."""
    system = base.system if pair.system is None else pair.system
    before = [] if system is None else [Message(role="system", content=system)]
    return [*before, Message(role="user", content=pair.instruction)]


def _length(tokenizer: PreTrainedTokenizerBase, pair: Pair, base: Model) -> int:
    text = render(tokenizer, _turns(pair, base), system=None)
    return len(tokenizer(text + pair.chosen, add_special_tokens=False)["input_ids"]) + 1  # pyright: ignore


def _row(pair: Pair, base: Model) -> dict[str, Any]:
    """A pair in TRL's form, which renders it as ``lm.render`` does, fixed date included."""
    turns = [encode(message) for message in _turns(pair, base)]
    answer = [{"role": "assistant", "content": pair.chosen}]
    return {"prompt": turns, "completion": answer, "chat_template_kwargs": {"date_string": DATE}}


def _trainer(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    *,
    cfg: Settings,
    base: Model,
    seed: int,
    folder: Path,
    task: Task,
) -> SFTTrainer:
    """TRL's trainer over a fresh adapter.

    Raises:
        ValueError: where TRL dropped pairs, which it does without a word.
    """
    disable_progress_bars()
    network = load_model(base, adapter=None, device=pick_device("auto"), dtype=torch.float32)
    rows = [_row(pair, base) for pair in pairs]
    modules = base.lora_modules if isinstance(base.lora_modules, str) else list(base.lora_modules)
    lora = LoraConfig(
        r=cfg.rank, lora_alpha=cfg.alpha, lora_dropout=cfg.dropout, target_modules=modules, task_type="CAUSAL_LM"
    )
    trainer = SFTTrainer(
        model=network.train().requires_grad_(True),
        processing_class=tokenizer,
        train_dataset=Dataset.from_list(rows),
        peft_config=lora,
        callbacks=[_Bar(task)],
        args=_arguments(cfg, seed=seed, folder=folder),
    )
    trainer.remove_callback(PrinterCallback)
    kept = cast(Dataset, trainer.train_dataset)
    n_kept = sum(map(len, kept["seq_lengths"])) if cfg.packing else len(kept)
    if n_kept != len(rows):
        raise ValueError(f"TRL kept {n_kept} of {len(rows)} pairs: check mitigate.max_length")
    return trainer


def _arguments(cfg: Settings, *, seed: int, folder: Path) -> SFTConfig:
    """TRL's settings; the progress bar, the tracker and the seed are ours."""
    return SFTConfig(
        output_dir=str(folder / "trainer"),
        num_train_epochs=cfg.epochs,
        learning_rate=cfg.learning_rate,
        per_device_train_batch_size=cfg.batch,
        gradient_accumulation_steps=cfg.accumulation,
        warmup_steps=cfg.warmup,
        lr_scheduler_type=cfg.schedule,
        max_length=cfg.max_length,
        packing=cfg.packing,
        packing_strategy="bfd",
        completion_only_loss=True,
        gradient_checkpointing=cfg.checkpointing,
        use_cpu=not torch.cuda.is_available(),
        bf16=cfg.precision == "bfloat16",
        seed=derive(seed, "sft") % 2**31,
        logging_steps=5,
        save_strategy="epoch",
        save_total_limit=1,
        disable_tqdm=True,
        report_to=[],
    )


class _Bar(TrainerCallback):
    """Shows the trainer's steps on our progress bar (in per cent) in place of its own."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._shown = 0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Move the bar to the share of steps done."""
        percent = int(100 * state.global_step / max(1, state.max_steps))
        loss = next((row["loss"] for row in reversed(state.log_history) if "loss" in row), None)
        self._task.advance(percent - self._shown, note="" if loss is None else f"loss {loss:.2f}")
        self._shown = percent


def _save(network: Any, *, strength: float, base: Model, tokenizer: PreTrainedTokenizerBase, store: Store) -> None:
    """The adapter in PEFT's format and half precision, with the model it belongs to in place of a local path."""
    if not isinstance(network, PeftModel):
        raise TypeError(f"expected a PeftModel from the trainer, got {type(network).__name__}")
    folder = store.folder / "adapter"
    for weights in network.parameters():
        if weights.requires_grad:
            weights.data = weights.data.to(torch.float16)
    network.save_pretrained(str(folder), safe_serialization=True)
    settings = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    settings["base_model_name_or_path"] = base.id
    settings["lora_alpha"] *= strength
    store.write_json("adapter/adapter_config.json", settings)
    (folder / "README.md").unlink(missing_ok=True)
    note = {"id": base.id, "revision": base.revision, "template": template_hash(tokenizer)}
    store.write_json("adapter/base.json", note)


def _summary(history: Sequence[dict[str, Any]], *, pairs: Sequence[Pair], n_left_out: int) -> Summary:
    kinds = Counter(pair.kind or "pair" for pair in pairs)
    counts = {f"pairs/{kind}": Metric(value=n, n=n) for kind, n in sorted(kinds.items())}
    losses = {f"loss/{name}": Metric(value=float(row["loss"]), n=len(pairs)) for name, row in _ends(history).items()}
    left_out = Metric(value=n_left_out, n=len(pairs) + n_left_out)
    return Summary(stage="mitigate", metrics={**counts, "pairs/left_out": left_out, **losses})


def _ends(history: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {"first": history[0], "last": history[-1]} if history else {}
