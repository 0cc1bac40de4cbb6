"""Sampling from a causal language model, many rows at once: one prefill a prompt, one step a token.

Shapes: P prompts, R rows (samples), V tokens of the vocabulary. Log-probabilities are natural logarithms.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from evorefuse.lm.cache import fill_holes, make_room

Tokens = Sequence[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """A sampling distribution q: temperature (0 is greedy), then top-k (0 is off), then top-p (1 is off)."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One sample to draw: the index of its prompt, its limit of new tokens and the seed of its own random numbers."""

    prompt: int
    max_tokens: int
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampled:
    """One sample: its tokens, the end of sequence included, with log p_θ and H(q) of each (nats)."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    entropy: tuple[float, ...]


def sample(
    model: Any,
    prompts: Sequence[Tokens],
    rows: Sequence[Row],
    *,
    scheme: Scheme,
    eos: Sequence[int],
    entropy: bool = False,
) -> list[Sampled]:
    """One sample a row, in order. Rows of one prompt share its prefill; a finished row leaves the batch.

    A row's random numbers come from its own seed, so who else is in the batch changes its tokens only by the rounding
    of the arithmetic. ``entropy`` asks for H(q) at each token. A row ends at one of ``eos`` or at its limit.
    """
    limits = torch.tensor([row.max_tokens for row in rows])
    uniforms = _uniforms(rows, width=int(limits.max()))
    tokens = torch.zeros(uniforms.shape, dtype=torch.long)
    logprobs, entropies = torch.zeros(uniforms.shape), torch.zeros(uniforms.shape)
    lengths = torch.zeros(len(rows), dtype=torch.long)
    ends = torch.tensor(list(eos), dtype=torch.long)
    batch = Batch(model, prompts, [row.prompt for row in rows], room=uniforms.shape[1])
    alive = torch.arange(len(rows))
    for t in range(uniforms.shape[1]):
        drawn, logprob, spread = draw(batch.logits, uniforms[alive, t].to(model.device), scheme=scheme, entropy=entropy)
        cpu = drawn.cpu()
        tokens[alive, t], logprobs[alive, t] = cpu, logprob.cpu()
        if entropy:
            entropies[alive, t] = spread.cpu()
        lengths[alive] = t + 1
        going = ~torch.isin(cpu, ends) & (limits[alive] > t + 1)
        if not going.any():
            break
        if not going.all():
            order = fill_holes(going)
            batch.keep(order)
            drawn, alive = drawn[order.to(drawn.device)], alive[order]
        batch.step(drawn)
    return [
        Sampled(
            tokens=tuple(tokens[i, :n].tolist()),
            logprobs=tuple(logprobs[i, :n].tolist()),
            entropy=tuple(entropies[i, :n].tolist()) if entropy else (),
        )
        for i, n in enumerate(lengths.tolist())
    ]


class Batch:
    """Rows that are being written: their key-value cache and the logits [R, V] of the next token."""

    def __init__(self, model: Any, prompts: Sequence[Tokens], owner: Sequence[int], *, room: int) -> None:
        """Prefill the prompts, each once, and give every row a copy of the state of its prompt, ``owner[row]``."""
        self._model = model
        self._last = torch.tensor([-1], device=model.device)
        ids, mask = left_pad(prompts, device=model.device)
        self._cache = DynamicCache(config=model.config)
        index = torch.tensor(list(owner), device=model.device)
        self._mask, self._positions = mask[index], mask.sum(1)[index]
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        self.logits = self._forward(ids, mask, positions)[index]
        make_room(self._cache, index, room=room)

    def step(self, tokens: Tensor) -> None:
        """Append one token to each row [R], and compute the next logits."""
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), 1)], dim=1)
        self.logits = self._forward(tokens[:, None], self._mask, self._positions[:, None])
        self._positions = self._positions + 1

    def keep(self, index: Tensor) -> None:
        """Let row i be what row ``index[i]`` was, and drop the others."""
        self._cache.batch_select_indices(index)
        index = index.to(self._mask.device)
        self._mask, self._positions = self._mask[index], self._positions[index]

    def _forward(self, ids: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        out = self._model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=self._last,  # an index, not 1: a slice is not contiguous, and its product ten times slower
        )
        return out.logits[:, 0]


def draw(logits: Tensor, uniforms: Tensor, *, scheme: Scheme, entropy: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """One token a row with log p_θ of it, both [R], and H(q), [R] (empty unless asked for).

    ``logits`` [R, V] are raw, ``uniforms`` [R] in [0, 1) pick from q by its inverse distribution function.
    """
    if scheme.temperature == 0:
        tokens = logits.argmax(-1)
        spread = torch.zeros_like(uniforms)
    else:
        q, candidates = truncate(logits, scheme=scheme)
        mass = q.cumsum(-1)
        place = torch.searchsorted(mass, uniforms[:, None] * mass[:, -1:], right=True)
        place = torch.minimum(place, (mass < mass[:, -1:]).sum(-1, keepdim=True))  # where rounding reached the end
        tokens = (place if candidates is None else candidates.gather(-1, place))[:, 0]
        spread = torch.special.entr(q).sum(-1) if entropy else torch.zeros_like(uniforms)
    logprob = logits.log_softmax(-1, dtype=torch.float32).gather(-1, tokens[:, None])[:, 0]
    return tokens, logprob, spread


def truncate(logits: Tensor, *, scheme: Scheme) -> tuple[Tensor, Tensor | None]:
    """The sampling distribution q [R, K] and its tokens [R, K], most probable first; None for all tokens in order.

    Temperature, then top-k, then top-p over what is left: the smallest set that holds at least that mass.
    """
    if scheme.top_k <= 0 and scheme.top_p >= 1:
        return (logits.float() / scheme.temperature).softmax(-1), None
    width = min(scheme.top_k, logits.shape[-1]) if scheme.top_k > 0 else logits.shape[-1]
    best, tokens = logits.topk(width, dim=-1)
    q = (best.float() / scheme.temperature).softmax(-1)
    if scheme.top_p < 1:
        before = q.cumsum(-1) - q
        q = q.masked_fill((before >= scheme.top_p) & (before > 0), 0.0)
        q = q / q.sum(-1, keepdim=True)
    return q, tokens


def log_likelihood(model: Any, prompts: Sequence[Tokens], openings: Sequence[Tokens]) -> Tensor:
    """The exact log p_θ(opening | prompt) [R] in nats, by one forward pass; none of the openings is empty."""
    ids, mask = left_pad(
        [[*prompt, *opening] for prompt, opening in zip(prompts, openings, strict=True)], device=model.device
    )
    width = max(map(len, openings))
    logits = model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=(mask.cumsum(1) - 1).clamp(min=0),
        use_cache=False,
        logits_to_keep=torch.arange(-width - 1, 0, device=ids.device),
    ).logits[:, :-1]
    targets = ids[:, -width:]
    chosen = logits.log_softmax(-1, dtype=torch.float32).gather(-1, targets[..., None])[..., 0]
    counts = torch.tensor([len(opening) for opening in openings], device=ids.device)
    ours = torch.arange(width, 0, -1, device=ids.device)[None] <= counts[:, None]
    return (chosen * ours).sum(-1)


def left_pad(prompts: Sequence[Tokens], *, device: Any) -> tuple[Tensor, Tensor]:
    """Token ids and attention mask, both [P, longest], padded on the left with token 0."""
    width = max(map(len, prompts))
    ids = torch.tensor([[0] * (width - len(prompt)) + list(prompt) for prompt in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=device)
    return ids, mask


def _uniforms(rows: Sequence[Row], *, width: int) -> Tensor:
    numbers = torch.zeros(len(rows), width)
    for i, row in enumerate(rows):
        generator = torch.Generator().manual_seed(row.seed)
        numbers[i, : row.max_tokens] = torch.rand(row.max_tokens, generator=generator)
    return numbers
