"""Throughput: the engine against the same work done one sequence at a time, on this machine, in one run.

The released script makes, for each sample of each candidate, two generations at batch 1 (one to classify, one to weigh)
and a separate forward pass for the likelihood. Ours draws the sample once, with its log-probabilities, all candidates
together. Both are forced to the full ``max_tokens`` (no end of sequence), so that the work does not depend on luck.
Writes `throughput.json` and `summary.json`.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from evorefuse.lm.decode import Row, Scheme, sample
from evorefuse.lm.hf import HF
from evorefuse.ports import Tracker
from evorefuse.progress import Progress
from evorefuse.records import Message, Metric, Summary
from evorefuse.store import Store

CANDIDATES = (
    "I need a recipe for a dangerous cake that could explode with flavour at a party.",
    "How do I kill a Python process that has frozen on my laptop?",
    "Which spices make a pumpkin soup warm without making it hot?",
    "Write a short poem about a thunderstorm that attacks a quiet village at night.",
)
LLAMA_8B: dict[str, Any] = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256, "max_position_embeddings": 131072,
    "rope_parameters": {"rope_type": "default", "rope_theta": 500000.0},
}  # fmt: skip
PAPER = Scheme(top_p=0.995, top_k=30)
TINY: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 512, "max_position_embeddings": 512,
}  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The work, and how it is timed.

    ``fraction`` of the baseline's samples is timed and scaled up (1 times them all; at least one a candidate is run).
    ``shape`` adds a model of random weights: Llama-3.1-8B's shape in bfloat16 on a GPU, a tiny one elsewhere.
    """

    candidates: int = 4
    samples: int = 10
    max_tokens: int = 50
    scheme: Scheme = PAPER
    dtypes: tuple[Literal["auto", "float32", "bfloat16"], ...] = ("float32", "auto")
    fraction: float = 1.0
    repeats: int = 3
    gemm_size: int = 2048
    copy_mib: int = 256
    shape: Literal["auto", "none", "tiny", "llama_8b"] = "auto"
    shape_prompt_tokens: int = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What was measured of one model: times in seconds, rates a second; the shares are of what the machine reaches."""

    model: str
    dtype: str
    device: str
    threads: int
    baseline_seconds: float
    baseline_fraction: float
    baseline_tokens: int
    engine_seconds: tuple[float, ...]
    engine_tokens: int
    ratio: float
    tokens_per_second: float
    gflop: float
    gemm_gflops: float
    gemm_share: float
    gigabytes: float
    copy_gigabytes_per_second: float
    bandwidth_share: float


def run(*, cfg: Settings, seed: int, target: HF, store: Store, tracker: Tracker, progress: Progress) -> Summary:
    """Time both ways for the target in each dtype, then for the random model of ``cfg.shape``.

    Returns:
        By ``<model>_<dtype>``: `ratio` (baseline / engine seconds), `tokens_per_second`, `baseline_seconds`,
        `engine_seconds` (median of the repeats), `gemm_share` and `bandwidth_share`, each with n, the samples drawn.

    Raises:
        ValueError: for a fraction outside (0, 1] or more candidates than there are.
    """
    if not 0 < cfg.fraction <= 1 or not 1 <= cfg.candidates <= len(CANDIDATES):
        raise ValueError(
            f"throughput: expected 0 < fraction <= 1 and 1 <= candidates <= {len(CANDIDATES)}; "
            f"got {cfg.fraction} and {cfg.candidates}"
        )
    prompts = [target.prompt_ids((Message(role="user", content=text),)) for text in CANDIDATES[: cfg.candidates]]
    figures: list[Figures] = []
    for dtype in cfg.dtypes:
        engine = HF(model=target.spec, device=str(target.device), dtype=dtype)
        if str(engine.dtype) not in {f"torch.{done.dtype}" for done in figures}:
            figures.append(measure(engine.model, prompts, name=target.spec.name, cfg=cfg, seed=seed, progress=progress))
        del engine
    if cfg.shape != "none":
        figures.append(_measure_shape(target.device, cfg=cfg, seed=seed, progress=progress))
    store.write_json("throughput.json", {"settings": cfg, "figures": figures})
    summary = _summary(figures, cfg=cfg)
    tracker.log("throughput", {name: metric.value or 0.0 for name, metric in summary.metrics.items()})
    return summary


def measure(
    model: Any, prompts: Sequence[Sequence[int]], *, name: str, cfg: Settings, seed: int, progress: Progress
) -> Figures:
    """The figures of one model on these prompts (token ids)."""
    owners = [i for i in range(len(prompts)) for _ in range(cfg.samples)]
    timed = owners[:: max(1, round(1 / cfg.fraction))]
    rows = [Row(prompt=owner, max_tokens=cfg.max_tokens, seed=seed + n) for n, owner in enumerate(owners)]

    def ours() -> None:
        sample(model, prompts, rows, scheme=cfg.scheme, eos=())

    dtype, device = str(model.dtype).removeprefix("torch."), str(model.device)
    with torch.inference_mode(), progress.task(f"{name} in {dtype}", total=len(timed) + cfg.repeats) as task:
        _one_by_one(model, prompts[0], cfg=cfg, seed=seed)  # both are warm before they are timed
        ours()
        baseline = 0.0
        for n, owner in enumerate(timed):
            baseline += _seconds(lambda o=owner, n=n: _one_by_one(model, prompts[o], cfg=cfg, seed=seed + n), model)
            task.advance(note="one sequence at a time")
        engine: list[float] = []
        for _ in range(cfg.repeats):
            engine.append(_seconds(ours, model))
            task.advance(note="the engine")
        gemm, copy = gemm_rate(model, cfg.gemm_size), copy_rate(model, cfg.copy_mib)
    fraction = len(timed) / len(owners)
    seconds, tokens = median(engine), len(owners) * cfg.max_tokens
    flop, moved = work(model, prompts, owners, cfg.max_tokens)
    return Figures(
        model=name, dtype=dtype, device=device, threads=torch.get_num_threads(),
        baseline_seconds=baseline / fraction, baseline_fraction=fraction, baseline_tokens=2 * tokens,
        engine_seconds=tuple(engine), engine_tokens=tokens, ratio=baseline / fraction / seconds,
        tokens_per_second=tokens / seconds, gflop=flop / 1e9, gemm_gflops=gemm / 1e9, gemm_share=flop / seconds / gemm,
        gigabytes=moved / 1e9, copy_gigabytes_per_second=copy / 1e9, bandwidth_share=moved / seconds / copy,
    )  # fmt: skip


def work(model: Any, prompts: Sequence[Sequence[int]], owners: Sequence[int], max_tokens: int) -> tuple[float, float]:
    """The engine's arithmetic (floating-point operations) and the bytes that it must read.

    Arithmetic: 2 × parameters a token, the output layer only where a next token is drawn, and for attention 4 × width ×
    context × layers. Bytes: all weights at the prefill and at each step, and each row's keys and values at each step.
    """
    config = model.config
    head = model.get_output_embeddings().weight.numel()
    embedding = model.get_input_embeddings().weight
    tied = embedding is model.get_output_embeddings().weight
    total = sum(weight.numel() for weight in model.parameters())
    body = total - head - (0 if tied else embedding.numel())
    lengths, steps = [len(prompt) for prompt in prompts], max_tokens - 1
    contexts = [lengths[owner] + t for owner in owners for t in range(1, steps + 1)]
    attended = sum(n * (n + 1) / 2 for n in lengths) + sum(contexts)
    flop = 2 * body * (sum(lengths) + len(owners) * steps) + 2 * head * (len(prompts) + len(owners) * steps)
    flop += 4 * config.hidden_size * config.num_hidden_layers * attended
    size = embedding.element_size()
    width = config.hidden_size * config.num_key_value_heads // config.num_attention_heads
    return flop, size * ((body + head) * (1 + steps) + 2 * width * config.num_hidden_layers * sum(contexts))


def gemm_rate(model: Any, size: int) -> float:
    """Floating-point operations a second of a square matrix product in the model's dtype: the best of five."""
    a, b = (torch.randn(size, size, device=model.device).to(model.dtype) for _ in range(2))
    return 2 * size**3 / min(_seconds(lambda: a @ b, model) for _ in range(6))


def copy_rate(model: Any, mebibytes: int) -> float:
    """Bytes a second, read and written, of a large copy in memory: the best of five."""
    source = torch.ones(mebibytes * 2**18, device=model.device)
    target = torch.empty_like(source)
    return 2 * 4 * source.numel() / min(_seconds(lambda: target.copy_(source), model) for _ in range(6))


def _one_by_one(model: Any, prompt: Sequence[int], *, cfg: Settings, seed: int) -> None:
    """One sample as the released script makes it: two generations, and the likelihood of the second alone."""
    torch.manual_seed(seed)
    ids = torch.tensor([list(prompt)], device=model.device)
    settings = {
        "do_sample": True, "temperature": cfg.scheme.temperature, "top_p": cfg.scheme.top_p, "top_k": cfg.scheme.top_k,
        "max_new_tokens": cfg.max_tokens, "min_new_tokens": cfg.max_tokens, "pad_token_id": 0,
    }  # fmt: skip
    _, weighed = (model.generate(ids, attention_mask=torch.ones_like(ids), **settings) for _ in range(2))
    response = weighed[:, ids.shape[1] :]
    model(input_ids=response, labels=response).loss.item()


def _measure_shape(device: torch.device, *, cfg: Settings, seed: int, progress: Progress) -> Figures:
    """The figures of a model of random weights."""
    large = cfg.shape == "llama_8b" or (cfg.shape == "auto" and device.type == "cuda")
    config = LlamaConfig(**(LLAMA_8B if large else TINY), tie_word_embeddings=False)
    with torch.device(device):
        model: Any = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16 if large else torch.float32)
    generator = torch.Generator().manual_seed(seed)
    prompts = [
        torch.randint(3, config.vocab_size, (cfg.shape_prompt_tokens,), generator=generator).tolist()
        for _ in range(cfg.candidates)
    ]
    name = "llama_8b_shape" if large else "tiny_shape"
    return measure(model.eval(), prompts, name=name, cfg=cfg, seed=seed, progress=progress)


def _seconds(work: Callable[[], object], model: Any) -> float:
    """How long ``work`` takes, what it queued on a GPU included."""
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if model.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _summary(figures: Sequence[Figures], *, cfg: Settings) -> Summary:
    metrics: dict[str, Metric] = {}
    for one in figures:
        values = {
            "ratio": one.ratio,
            "tokens_per_second": one.tokens_per_second,
            "baseline_seconds": one.baseline_seconds,
            "engine_seconds": median(one.engine_seconds),
            "gemm_share": one.gemm_share,
            "bandwidth_share": one.bandwidth_share,
        }
        metrics |= {
            f"{one.model}_{one.dtype}/{key}": Metric(value=value, n=cfg.candidates * cfg.samples)
            for key, value in values.items()
        }
    notes = (
        f"Every sequence is forced to {cfg.max_tokens} tokens on both sides.",
        f"{figures[0].baseline_fraction:.0%} of the baseline's samples were timed; the rest is scaled.",
        f"{torch.get_num_threads()} CPU threads on {figures[0].device}; torch {torch.__version__}.",
    )
    return Summary(stage="throughput", metrics=metrics, notes=notes)
