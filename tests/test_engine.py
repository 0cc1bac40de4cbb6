"""The local engine: what it samples, what it says of it, and that a batch changes nothing."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from scipy import stats
from tiny import CONFIGS, ask, engine, mixed_requests, save_model
from torch import Tensor
from transformers import (
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from evorefuse.lm import decode
from evorefuse.lm.cache import fill_holes
from evorefuse.lm.decode import Row, Scheme
from evorefuse.lm.render import encode, render
from evorefuse.records import Message, Reply, Request


@pytest.fixture(scope="module", params=sorted(CONFIGS))
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("llama"), "llama_gqa")


def agree(some: list[Reply], others: list[Reply]) -> None:
    assert [(r.text, r.finish, r.usage) for r in some] == [(r.text, r.finish, r.usage) for r in others]
    for one, other in zip(some, others, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-4)


def test_batched_equals_single_and_keeps_the_order(folder: Path) -> None:
    lm, requests = engine(folder), mixed_requests()
    together = lm.complete(requests)
    alone = [lm.complete([request])[0] for request in requests]
    agree(together, alone)
    assert len({reply.usage.completion_tokens for reply in together}) > 3, "rows must leave at different times"
    assert len({reply.text for reply in together}) > 8
    assert lm.complete(requests) == together, "the same batch gives the same bytes"
    agree(list(reversed(lm.complete(requests[::-1]))), together)
    agree(engine(folder, batch_tokens=70).complete(requests), together)
    assert lm.complete([]) == []


def test_log_probabilities_are_those_of_a_separate_forward_pass(folder: Path) -> None:
    lm, requests = engine(folder), mixed_requests()
    prompts = [lm.prompt_ids(request.messages) for request in requests]
    rows = [Row(prompt=i, max_tokens=12, seed=i) for i in range(len(prompts))]
    with torch.inference_mode():
        drawn = decode.sample(lm.model, prompts, rows, scheme=Scheme(top_k=5, temperature=0.7), eos=lm.eos)
        whole = decode.log_likelihood(lm.model, prompts, [sample.tokens for sample in drawn])
        for prompt, sample, total in zip(prompts, drawn, whole.tolist(), strict=True):
            logits = lm.model(torch.tensor([[*prompt, *sample.tokens]])).logits[0, len(prompt) - 1 : -1]
            each = logits.log_softmax(-1).gather(-1, torch.tensor(sample.tokens)[:, None])[:, 0]
            assert sample.logprobs == pytest.approx(each.tolist(), abs=1e-4)
            assert sum(sample.logprobs) == pytest.approx(total, abs=1e-3)


def test_log_prob_of_openings(llama: Path) -> None:
    lm = engine(llama)
    prompts = [ask(text).messages for text in ("kill the process", "how do i bake a cake", "help", "help")]
    openings = ["sorry", "sure here is the cake", "", "i cannot " * 60]
    values = lm.log_prob(prompts, openings)
    assert values[2] == 0.0
    assert math.isnan(values[3])
    for prompt, opening, value in zip(prompts[:2], openings[:2], values[:2], strict=True):
        assert lm.log_prob([prompt], [opening]) == pytest.approx([value], abs=1e-4)
        ids, tail = lm.prompt_ids(prompt), lm.token_ids(opening)
        logs = lm.model(torch.tensor([ids + tail])).logits[0].log_softmax(-1)
        exact = sum(float(logs[len(ids) - 1 + j, token]) for j, token in enumerate(tail))
        assert value == pytest.approx(exact, abs=1e-4)
    assert lm.log_prob([], []) == []


def test_a_shared_prefill_equals_separate_ones(folder: Path) -> None:
    lm = engine(folder)
    prompt = lm.prompt_ids(ask("how do i bake a cake").messages)
    together = [Row(prompt=0, max_tokens=8, seed=seed) for seed in range(6)]
    apart = [Row(prompt=seed, max_tokens=8, seed=seed) for seed in range(6)]
    with torch.inference_mode():
        shared = decode.sample(lm.model, [prompt], together, scheme=Scheme(), eos=())
        separate = decode.sample(lm.model, [prompt] * 6, apart, scheme=Scheme(), eos=())
    assert [one.tokens for one in shared] == [other.tokens for other in separate]
    for one, other in zip(shared, separate, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-5)


def test_end_of_sequence_is_counted_but_not_shown(llama: Path) -> None:
    lm = engine(llama)
    replies = lm.complete([ask("kill the process", sample=k, temperature=1.5) for k in range(40)])
    assert {reply.finish for reply in replies} == {"stop", "length"}
    for reply in replies:
        assert "<eos>" not in reply.text
        assert len(reply.logprobs or ()) == reply.usage.completion_tokens <= 20
        assert len(reply.text.split()) <= reply.usage.completion_tokens - (reply.finish == "stop")
    assert all(reply.usage.completion_tokens == 20 for reply in replies if reply.finish == "length")


def test_greedy_is_the_argmax_and_ignores_the_seed(llama: Path) -> None:
    lm = engine(llama)
    first, second = lm.complete([ask("help", temperature=0, sample=k) for k in range(2)])
    assert first == second
    ids = lm.prompt_ids(ask("help").messages)
    out = lm.model.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False)[0, len(ids) :]
    assert first.text == lm.tokenizer.decode(out, skip_special_tokens=True)


@pytest.mark.parametrize(
    "scheme", [Scheme(top_k=4), Scheme(top_p=0.7), Scheme(temperature=0.6, top_k=7, top_p=0.9), Scheme()]
)
def test_samples_follow_the_truncated_distribution(scheme: Scheme) -> None:
    logits = torch.randn(1, 12, generator=torch.Generator().manual_seed(3)) * 1.5
    expected = _reference(logits, scheme)[0]
    n = 20_000
    uniforms = torch.rand(n, generator=torch.Generator().manual_seed(4))
    tokens, logprobs, entropy = decode.draw(logits.expand(n, -1), uniforms, scheme=scheme, entropy=True)
    counts = torch.bincount(tokens, minlength=12)
    assert not counts[expected == 0].any()
    kept = expected > 0
    assert stats.chisquare(counts[kept].numpy(), (expected[kept] / expected[kept].sum() * n).numpy()).pvalue > 0.001
    assert torch.allclose(logprobs, logits.log_softmax(-1)[0, tokens], atol=1e-5)
    assert float(entropy[0]) == pytest.approx(float(torch.special.entr(expected).sum()), abs=1e-4)


def _reference(logits: Tensor, scheme: Scheme) -> Tensor:
    ids = torch.zeros(1, 1, dtype=torch.long)
    scores = TemperatureLogitsWarper(scheme.temperature)(ids, logits)
    if scheme.top_k:
        scores = TopKLogitsWarper(scheme.top_k)(ids, scores)
    if scheme.top_p < 1:
        scores = TopPLogitsWarper(scheme.top_p)(ids, scores)
    return scores.double().softmax(-1)


def test_uniforms_at_the_edges_pick_a_possible_token() -> None:
    logits = torch.tensor([[5.0, -200.0, 4.0, -200.0]]).expand(2, -1)
    tokens, logprobs, _ = decode.draw(logits, torch.tensor([0.0, 1.0]), scheme=Scheme())
    assert tokens.tolist() == [0, 2]
    assert torch.isfinite(logprobs).all()


def test_entropy_comes_only_when_asked_for(llama: Path) -> None:
    request = ask("help", top_k=3)
    assert engine(llama).complete([request])[0].entropy is None
    reply = engine(llama, entropy=True).complete([request])[0]
    assert reply.entropy is not None
    assert len(reply.entropy) == reply.usage.completion_tokens
    assert all(0 <= value <= math.log(3) + 1e-6 for value in reply.entropy)


def test_fill_holes_moves_as_few_rows_as_possible() -> None:
    going = torch.tensor([True, False, True, False, True, True])
    assert fill_holes(going).tolist() == [0, 4, 2, 5]
    assert fill_holes(torch.tensor([False, True])).tolist() == [1]


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate")]
)
def test_out_of_memory_halves_the_batch(llama: Path, monkeypatch: pytest.MonkeyPatch, error: RuntimeError) -> None:
    lm, requests, sizes = engine(llama), mixed_requests(), []
    expected, real = lm.complete(requests), decode.sample

    def scarce(model: Any, prompts: Any, rows: Any, **rest: Any) -> Any:
        sizes.append(len(rows))
        if len(rows) > 5:
            raise error
        return real(model, prompts, rows, **rest)

    monkeypatch.setattr("evorefuse.lm.hf.sample", scarce)
    agree(lm.complete(requests), expected)
    assert sizes[0] == 16 > sizes[1]
    assert max(sizes[3:]) <= 5
    monkeypatch.setattr("evorefuse.lm.hf.sample", lambda *_, **__: (_ for _ in ()).throw(error))
    assert [reply.finish for reply in lm.complete(requests[:2])] == ["error", "error"]


def test_another_error_is_not_taken_for_lack_of_memory(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evorefuse.lm.hf.sample", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("shapes")))
    with pytest.raises(RuntimeError, match="shapes"):
        engine(llama).complete([ask("help")])


def test_a_request_that_does_not_fit_is_an_error_value(llama: Path) -> None:
    replies = engine(llama).complete(
        [ask("help"), ask("cake " * 200), ask("help", max_tokens=0), ask("kill", top_p=0.0), ask("kill")]
    )
    assert [reply.finish == "error" for reply in replies] == [False, True, True, True, False]
    assert "context of 96 tokens" in str(replies[1].error)
    assert replies[1].logprobs is None


def test_the_system_prompt_is_as_set_and_there_is_one_bos(llama: Path) -> None:
    lm = engine(llama)
    asked = ask("help").messages
    assert render(lm.tokenizer, asked, system=None) == "<bos><system> the cat <user> help <assistant>"
    assert render(lm.tokenizer, asked, system="") == "<bos><system>  <user> help <assistant>"
    own = (Message(role="system", content="cake"), *asked)
    assert render(lm.tokenizer, own, system="fire") == "<bos><system> cake <user> help <assistant>"
    assert lm.prompt_ids(asked).count(1) == 1
    assert encode(lm.tokenizer, "<bos><bos><user> help").count(1) == 1
    hashes = {engine(llama, system=system).identity["rendering"] for system in (None, "", "fire")}
    assert len(hashes) == 3


def test_a_template_that_takes_no_system_prompt_says_so(llama: Path) -> None:
    picky = (
        "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}"
        "<user>{{ messages[0]['content'] }}"
    )
    with pytest.raises(ValueError, match="no system role"):
        engine(llama, chat_template=picky, system="fire")
    lm = engine(llama, chat_template=picky)
    failed = Request(messages=(Message(role="system", content="x"), Message(role="user", content="help")), max_tokens=3)
    assert [reply.finish == "error" for reply in lm.complete([failed, ask("help")])] == [True, False]
    with pytest.raises(ValueError, match=r"can be asked none of this.*no system role.*system"):
        lm.complete([failed, failed])  # a search whose every request fails alike is a set-up's fault, not an item's
