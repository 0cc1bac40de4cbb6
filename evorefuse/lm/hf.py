"""The local engine: a Hugging Face model that answers in batches, with exact probabilities."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import torch

from evorefuse.lm.decode import Row, Sampled, Scheme, log_likelihood, sample
from evorefuse.lm.load import Quantization, check_template, load_model, load_tokenizer, pick_device, pick_dtype
from evorefuse.lm.model import Model, adapter_hash
from evorefuse.lm.render import encode, render, rendering_hash, template_hash
from evorefuse.records import Message, Reply, Request, Usage, derive

END_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<|end_of_turn|>", "<end_of_turn>", "<|end|>", "</s>")

LOGITS_WEIGHT = 16  # a token whose logits are kept takes about as much memory as this many tokens of the cache

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """Requests of one prompt under one scheme: ``places`` are their positions in the call."""

    ids: list[int]
    scheme: Scheme
    places: list[int]


class HF:
    """A causal language model run by transformers, on a CPU or a GPU.

    The samples of one prompt share a prefill; prompts of like length go together; finished sequences leave the batch.
    ``batch_tokens`` bounds rows × (prompt + new tokens) of one batch, the size of its key-value cache; when memory runs
    out it is halved and the batch tried again. ``dtype`` auto is bfloat16 where the hardware multiplies in it, else
    float32. ``device`` all spreads the layers over all GPUs, and over the CPU what they cannot hold. ``quantization``
    holds the weights in 8 or 4 bits (bitsandbytes). ``entropy`` adds H(q) of each sampled token to the replies.
    """

    def __init__(
        self,
        *,
        model: Model,
        device: str = "auto",
        dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto",
        quantization: Quantization | None = None,
        threads: int | None = None,
        batch_tokens: int = 16384,
        entropy: bool = False,
    ) -> None:
        """Load the model.

        Raises:
            FileNotFoundError: where the model or its adapter is not there, with how to get it.
            ValueError: for a setting that does not fit the model.
        """
        if threads is not None:
            torch.set_num_threads(threads)
        self.spec = model
        self.device = pick_device(device)
        self.dtype = pick_dtype(dtype, device=self.device)
        self.tokenizer: Any = load_tokenizer(model)
        adapter = model.adapter_folder()
        check_template(model, adapter, template_hash(self.tokenizer))
        self._rendering = rendering_hash(self.tokenizer, system=model.system)
        self.model: Any = load_model(
            model,
            adapter=adapter,
            device=self.device,
            dtype=self.dtype,
            quantization=quantization,
            spread=device == "all",
        )
        self._quantization = quantization
        self._adapter = adapter_hash(adapter)
        self._entropy = entropy
        self._batch_tokens = batch_tokens
        self.eos = end_tokens(self.tokenizer, self.model)

    @property
    def identity(self) -> Mapping[str, Any]:
        """All that changes a reply besides the Request; hashes are SHA-256."""
        return {
            "name": self.spec.name,
            "source": self.spec.source,
            "id": self.spec.id,
            "revision": self.spec.revision,
            "adapter": self._adapter,
            "system": self.spec.system,
            "template": template_hash(self.tokenizer),
            "rendering": self._rendering,
            "dtype": str(self.dtype).removeprefix("torch."),
            "quantization": self._quantization,
            "entropy": self._entropy,
        }

    @property
    def context(self) -> int:
        """The most tokens, prompt and answer together, that the model takes."""
        return int(getattr(self.model.config, "max_position_embeddings", None) or 2**31)

    def complete(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply a request, in order; a request that cannot be answered is a reply with an error.

        Raises:
            ValueError: where the chat template refuses every one of them: that is the set-up's fault.
        """
        replies: dict[int, Reply] = {}
        jobs = self._jobs(requests, replies)
        with torch.inference_mode():
            for _, alike in groupby(jobs, key=lambda job: job.scheme):
                queue = [(job, place) for job in alike for place in job.places]
                while queue:
                    widths = [len(job.ids) + requests[i].max_tokens for job, i in queue]
                    size, tokens = _prefix_that_fits(widths, self._batch_tokens)
                    answered = self._answer(queue[:size], requests, tokens=tokens)
                    if answered is not None:
                        replies |= answered
                        queue = queue[size:]
        return [replies[i] for i in range(len(requests))]

    def log_prob(self, prompts: Sequence[tuple[Message, ...]], openings: Sequence[str]) -> list[float]:
        """The exact log p_θ(opening | prompt), nats, of each pair, by one forward pass a batch.

        The opening is what an answer would start with: 0 for an empty one, nan where the pair exceeds the context.

        Raises:
            ValueError: where the chat template refuses a prompt.
        """
        ids = [
            (self.prompt_ids(prompt), self.token_ids(opening))
            for prompt, opening in zip(prompts, openings, strict=True)
        ]
        values = {i: float("nan") if opening else 0.0 for i, (_, opening) in enumerate(ids)}
        queue = [i for i, (prompt, opening) in enumerate(ids) if opening and len(prompt) + len(opening) <= self.context]
        queue.sort(key=lambda i: (len(ids[i][0]) + len(ids[i][1]), i))
        with torch.inference_mode():
            while queue:
                size, tokens = _prefix_that_fits(
                    [len(ids[i][0]) + LOGITS_WEIGHT * len(ids[i][1]) for i in queue], self._batch_tokens
                )
                now = [ids[i] for i in queue[:size]]
                try:
                    found = log_likelihood(self.model, [pair[0] for pair in now], [pair[1] for pair in now]).tolist()
                except RuntimeError as error:
                    if self._shrink(error, rows=size, tokens=tokens):
                        continue
                    found = [float("nan")] * size
                values |= zip(queue[:size], found, strict=True)
                queue = queue[size:]
        return [values[i] for i in range(len(ids))]

    def prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        """The token ids of a conversation, up to where the answer starts."""
        return encode(self.tokenizer, render(self.tokenizer, messages, system=self.spec.system))

    def token_ids(self, text: str) -> list[int]:
        """The token ids of an answer's text."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _jobs(self, requests: Sequence[Request], replies: dict[int, Reply]) -> list[Job]:
        """Requests by prompt and scheme: schemes together, short prompts first. Errors go to ``replies``."""
        groups: dict[tuple[tuple[Message, ...], Scheme], list[int]] = {}
        for i, request in enumerate(requests):
            scheme = Scheme(temperature=request.temperature, top_p=request.top_p, top_k=request.top_k)
            groups.setdefault((request.messages, scheme), []).append(i)
        jobs: list[Job] = []
        for (messages, scheme), places in groups.items():
            try:
                ids = self.prompt_ids(messages)
            except ValueError as error:
                replies |= {i: _failed(str(error)) for i in places}
                continue
            errors = {i: self._objection(requests[i], tokens=len(ids)) for i in places}
            replies |= {i: _failed(error) for i, error in errors.items() if error}
            jobs.append(Job(ids=ids, scheme=scheme, places=[i for i in places if not errors[i]]))
        if replies and not jobs:
            raise ValueError(
                f"model {self.spec.name!r} can be asked none of this: {next(iter(replies.values())).error}. Where it "
                "takes no system prompt, set the `system` of sampling and target to null, or give a `chat_template`"
            )
        order = {scheme: n for n, scheme in enumerate(dict.fromkeys(job.scheme for job in jobs))}
        return sorted(jobs, key=lambda job: (order[job.scheme], len(job.ids)))

    def _objection(self, request: Request, *, tokens: int) -> str | None:
        """Why a request whose prompt has so many tokens cannot be answered, or None."""
        if request.max_tokens < 1 or request.temperature < 0 or not 0 < request.top_p <= 1:
            return (
                "expected max_tokens >= 1, temperature >= 0 and 0 < top_p <= 1; got "
                f"{request.max_tokens}, {request.temperature} and {request.top_p}"
            )
        if tokens + request.max_tokens > self.context:
            return (
                f"the prompt's {tokens} tokens and max_tokens={request.max_tokens} exceed the context of "
                f"{self.context} tokens: shorten the instruction or lower max_tokens"
            )
        return None

    def _answer(
        self, queue: Sequence[tuple[Job, int]], requests: Sequence[Request], *, tokens: int
    ) -> dict[int, Reply] | None:
        """The replies by place, or None where memory ran out and a smaller batch may be tried."""
        jobs = list({id(job): job for job, _ in queue}.values())
        index = {id(job): n for n, job in enumerate(jobs)}
        rows = [
            Row(
                prompt=index[id(job)],
                max_tokens=requests[i].max_tokens,
                seed=derive(requests[i].seed, requests[i].sample),
            )
            for job, i in queue
        ]
        try:
            samples = sample(
                self.model, [job.ids for job in jobs], rows, scheme=jobs[0].scheme, eos=self.eos, entropy=self._entropy
            )
        except RuntimeError as error:
            if self._shrink(error, rows=len(queue), tokens=tokens):
                return None
            return {i: _failed(f"out of memory on one sequence: {error}") for _, i in queue}
        return {
            i: self._reply(drawn, requests[i], prompt=len(job.ids))
            for (job, i), drawn in zip(queue, samples, strict=True)
        }

    def _reply(self, drawn: Sampled, request: Request, *, prompt: int) -> Reply:
        stopped = bool(drawn.tokens) and drawn.tokens[-1] in self.eos
        body = drawn.tokens[:-1] if stopped else drawn.tokens
        return Reply(
            text=str(self.tokenizer.decode(body, skip_special_tokens=True)),
            finish="stop" if stopped else "length",
            logprobs=drawn.logprobs if request.logprobs else None,
            entropy=drawn.entropy if self._entropy else None,
            usage=Usage(prompt_tokens=prompt, completion_tokens=len(drawn.tokens)),
        )

    def _shrink(self, error: RuntimeError, *, rows: int, tokens: int) -> bool:
        """Halve the batch where ``error`` says that memory ran out; whether a smaller one can be tried.

        Raises:
            RuntimeError: the same one, where it is about something else.
        """
        if not is_out_of_memory(error):
            raise error
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        if rows == 1:
            return False
        self._batch_tokens = tokens // 2
        log.warning("out of memory with %d rows: batches are now of %d tokens at most", rows, self._batch_tokens)
        return True


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether a torch error says that the memory of a GPU or of the machine ran out."""
    text = str(error)
    return isinstance(error, torch.OutOfMemoryError) or "DefaultCPUAllocator" in text or "can't allocate memory" in text


def end_tokens(tokenizer: Any, model: Any) -> tuple[int, ...]:
    """The ids that end an answer: of the generation config, of the tokenizer, and its known end-of-turn tokens."""
    configured = model.generation_config.eos_token_id
    ids = set(configured if isinstance(configured, list) else [configured]) | {tokenizer.eos_token_id}
    vocabulary = tokenizer.get_added_vocab()
    ids |= {vocabulary.get(token) for token in END_OF_TURN}
    return tuple(sorted(i for i in ids if i is not None))


def _prefix_that_fits(widths: Sequence[int], budget: int) -> tuple[int, int]:
    """How many of the first items (one or more), padded to the widest, stay within ``budget``; and their tokens."""
    widest = widths[0]
    for n, width in enumerate(widths):
        if n and (n + 1) * max(widest, width) > budget:
            return n, n * widest
        widest = max(widest, width)
    return len(widths), len(widths) * widest


def _failed(error: str) -> Reply:
    return Reply(text="", finish="error", error=error)
