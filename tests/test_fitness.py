"""The ELBO's truth, on toy language models whose every response can be enumerated; and its failures."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from fakes import Echo, SorryJudge, instructions

from evorefuse.fitness.constant import Constant
from evorefuse.fitness.elbo import Elbo
from evorefuse.fitness.rate import Rate
from evorefuse.records import Exchange, Fitness, Reply, Request, Verdict, stream
from evorefuse.sampling import Sampling

TOYS, K, EOS = 200, 200, "."
Response = tuple[str, tuple[float, ...]]  # the tokens as a text, and log p of each of them


@dataclass(kw_only=True)
class Toy:
    """Tokens a, b, c (and EOS) drawn from random logits at each prefix; responses of at most three tokens.

    ``draws`` is q, which is p under temperature and top-k, unless ``posterior`` weights p by p(refusal | y).
    """

    seed: int
    ends: bool = True
    posterior: bool = False
    name: str = "toy"
    tables: dict[tuple[Any, ...], list[tuple[Response, float]]] = field(default_factory=dict)

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"name": self.name}

    def next_tokens(self, prompt: str, prefix: str) -> dict[str, float]:
        """p of each next token."""
        rng = stream("toy", self.seed, prompt, prefix)
        weights = {token: math.exp(rng.gauss(0, 1.5)) for token in ("abc" + EOS if self.ends else "abc")}
        return {token: weight / sum(weights.values()) for token, weight in weights.items()}

    def q(self, prompt: str, *, temperature: float = 1.0, top_k: int = 0) -> list[tuple[Response, float]]:
        """Every response with the log p of its tokens, and its probability under q."""
        found: list[tuple[Response, float]] = []

        def grow(text: str, logs: tuple[float, ...], mass: float) -> None:
            if len(text) == 3 or text.endswith(EOS):
                found.append(((text, logs), mass))
                return
            p = self.next_tokens(prompt, text)
            kept = sorted(p, key=lambda token: -p[token])[: top_k or len(p)]
            scale = {token: p[token] ** (1 / temperature) for token in kept}
            for token in kept:
                grow(text + token, (*logs, math.log(p[token])), mass * scale[token] / sum(scale.values()))

        grow("", (), 1.0)
        if self.posterior:
            found = [(y, mass * p_refusal(y[0])) for y, mass in found]
            evidence = sum(mass for _, mass in found)
            found = [(y, mass / evidence) for y, mass in found]
        return found

    def complete(self, requests: Sequence[Request]) -> list[Reply]:
        return [self._reply(request) for request in requests]

    def _reply(self, request: Request) -> Reply:
        prompt = request.messages[-1].content
        key = (prompt, request.temperature, request.top_k)
        if key not in self.tables:
            self.tables[key] = self.q(prompt, temperature=request.temperature, top_k=request.top_k)
        u = stream(request.seed).random()
        totals = itertools.accumulate(mass for _, mass in self.tables[key])
        text, logs = next(
            (y for (y, _), total in zip(self.tables[key], totals, strict=True) if u < total), self.tables[key][-1][0]
        )
        return Reply(text=text, finish="stop", logprobs=logs)


def p_refusal(text: str) -> float:
    """A fixed p(refusal | y) in (0.05, 0.95) for each response."""
    return 0.05 + 0.9 * stream("refusal", text).random()


@dataclass(frozen=True, kw_only=True)
class Oracle:
    """Gives p(refusal | y) as it is."""

    name: str = "oracle"

    def score(self, exchanges: Sequence[Exchange]) -> list[Verdict]:
        return [Verdict(scorer=self.name, label="other", value=p_refusal(x.reply.text)) for x in exchanges if x.reply]


def elbo(toy: Toy, *, weight: float, samples: int = K, top_k: int = 0, temperature: float = 1.0, seed: int = 0):
    """The estimate on a toy's only prompt."""
    sampling = Sampling(samples=samples, max_tokens=3, temperature=temperature, top_p=1.0, top_k=top_k)
    estimator = Elbo(target=toy, refusal=Oracle(), sampling=sampling, confidence_weight=weight, epsilon=1e-9)
    return estimator.estimate(instructions("x"), seed=seed)[0]


def moments(q: Sequence[tuple[Response, float]], term: Callable[[Response], float]) -> tuple[float, float]:
    """The exact mean and standard deviation of a term under q."""
    mean = sum(mass * term(y) for y, mass in q)
    return mean, math.sqrt(sum(mass * (term(y) - mean) ** 2 for y, mass in q))


def entropy(q: Sequence[tuple[Response, float]]) -> float:
    return -sum(mass * math.log(mass) for _, mass in q if mass > 0)


def estimates(weight: float, **scheme: Any) -> list[tuple[Fitness, list[tuple[Response, float]]]]:
    """The estimate and the whole of q for each of the toys."""
    return [
        (elbo(Toy(seed=seed), weight=weight, seed=seed, **scheme), Toy(seed=seed).q("x", **scheme))
        for seed in range(TOYS)
    ]


def deviations(
    found: Sequence[tuple[float | None, Sequence[tuple[Response, float]]]], term: Callable[[Response], float]
):
    """(estimate - exact) / standard error."""
    exact = [moments(q, term) for _, q in found]
    return [
        ((own or 0.0) - mean) / (spread / math.sqrt(K)) for (own, _), (mean, spread) in zip(found, exact, strict=True)
    ]


def agree(z: Sequence[float]) -> bool:
    """Whether the deviations are those of an unbiased estimator with its standard error."""
    mean = sum(z) / len(z)
    square = sum(own * own for own in z) / len(z)
    return max(map(abs, z)) < 4.2 and abs(mean) * math.sqrt(len(z)) < 3.5 and 0.7 < square < 1.4


def confidence(y: Response) -> float:
    return sum(y[1]) / len(y[1])


def log_refusal(y: Response) -> float:
    return math.log(p_refusal(y[0]))


@pytest.mark.parametrize("scheme", [{}, {"top_k": 2}, {"temperature": 0.6}], ids=str)
def test_the_estimators_mean_is_the_exact_expectation(scheme):
    weight = 0.7

    def term(y: Response) -> float:
        return log_refusal(y) + weight * confidence(y)

    found = [(fitness.value, q) for fitness, q in estimates(weight, **scheme)]
    assert agree(deviations(found, term))
    assert not agree(deviations(found, lambda y: term(y) + 0.1))  # the check itself can fail


def test_each_part_is_its_own_expectation():
    found = estimates(0.0)
    assert agree(deviations([(fitness.log_refusal, q) for fitness, q in found], log_refusal))
    assert agree(deviations([(fitness.log_confidence, q) for fitness, q in found], confidence))


def test_the_logarithm_is_taken_before_the_mean_not_after():
    """The released script's order estimates another number; the check above would see it."""
    z: list[float] = []
    for seed in range(TOYS):
        q = Toy(seed=seed).q("x")
        mean, spread = moments(q, log_refusal)
        z.append((math.log(moments(q, lambda y: p_refusal(y[0]))[0]) - mean) / (spread / math.sqrt(K)))
    assert not agree(z)


@pytest.mark.parametrize("top_k", [0, 2])
def test_with_the_entropy_it_is_a_lower_bound_of_the_evidence(top_k):
    """E_q[log p(y|x) + log p(r|y)] + H(q) ≤ log p(r|x): λ = T makes λ/T·Σ log p the log p of the whole response."""
    gaps: list[float] = []
    for seed in range(TOYS):
        toy = Toy(seed=seed, ends=False)
        p, q = toy.q("x"), toy.q("x", top_k=top_k)
        evidence = math.log(sum(mass * p_refusal(y[0]) for y, mass in p))
        mean, spread = moments(q, lambda y: log_refusal(y) + sum(y[1]))
        assert mean + entropy(q) <= evidence + 1e-12
        gaps.append(evidence - mean - entropy(q))
        estimate = elbo(toy, weight=3.0, top_k=top_k, seed=seed).value
        assert estimate is not None
        assert abs(estimate - mean) < 4.2 * spread / math.sqrt(K)
        assert estimate + entropy(q) < evidence + 4.2 * spread / math.sqrt(K)
    assert min(gaps) > 0
    assert max(gaps) > 0.05  # the bound is not tight where q is not the posterior


def test_the_bound_is_reached_where_q_is_the_posterior():
    """Then log p(y) + log p(r|y) - log q(y) is log p(r|x) for each single sample."""
    for seed in range(TOYS):
        toy = Toy(seed=seed, ends=False, posterior=True)
        evidence = math.log(sum(mass * p_refusal(y[0]) for y, mass in Toy(seed=seed, ends=False).q("x")))
        q = toy.q("x")
        mean, _ = moments(q, lambda y: log_refusal(y) + sum(y[1]))
        assert mean + entropy(q) == pytest.approx(evidence, abs=1e-9)
        single = elbo(toy, weight=3.0, samples=1, seed=seed).value
        assert single is not None
        assert min(abs(single - math.log(mass) - evidence) for _, mass in q) < 1e-9


def test_truncation_changes_the_entropy_so_it_is_constant_only_within_one_scheme():
    changes = [entropy(Toy(seed=s).q("x")) - entropy(Toy(seed=s).q("x", top_k=2)) for s in range(TOYS)]
    assert sum(changes) / TOYS > 0.2
    assert all(abs(change) > 1e-9 for change in changes)


def judged(*items: tuple[float | None, tuple[float, ...] | None, str | None]):
    """Replies and verdicts: p(refusal), log-probabilities, error."""
    return [
        (
            Reply(text="y", finish="error" if error else "stop", logprobs=logs, error=error),
            Verdict(scorer="s", label="unscored" if p is None else "full", value=p),
        )
        for p, logs, error in items
    ]


def estimator(**changes: Any) -> Elbo:
    return Elbo(**{"target": Echo(), "refusal": SorryJudge(), "sampling": Sampling(samples=3), **changes})


def test_the_parts_are_means_over_samples_of_means_over_tokens():
    found = estimator(confidence_weight=0.5).combine(judged((0.5, (-1.0, -3.0), None), (0.25, (-4.0,), None)))
    assert found.log_refusal == pytest.approx((math.log(0.5) + math.log(0.25)) / 2)
    assert found.log_confidence == pytest.approx(-3.0)
    assert found.value == pytest.approx((math.log(0.5) + math.log(0.25)) / 2 - 1.5)
    assert (found.n, found.n_unscored, found.error) == (2, 0, None)


def test_unscored_and_failed_replies_are_left_out_and_counted():
    found = estimator().combine(judged((0.5, (-1.0,), None), (None, (-9.0,), None), (0.9, (-9.0,), "timed out")))
    assert found.log_refusal == pytest.approx(math.log(0.5))
    assert found.log_confidence == -1.0
    assert (found.n, found.n_unscored) == (1, 2)


def test_no_usable_reply_is_no_value_but_an_error():
    found = estimator().combine(judged((None, None, "timed out"), (None, (-1.0,), None)))
    assert found.value is found.log_refusal is found.log_confidence is None
    assert (found.n, found.n_unscored, found.error) == (0, 2, "timed out")
    assert estimator(sampling=Sampling(samples=0)).estimate(instructions("x"), seed=1)[0].value is None


def test_a_provider_that_blocks_every_reply_leaves_the_refusal_term_alone():
    replies = judged((0.98, None, None), (0.98, None, None))
    blocked = [(replace(reply, finish="blocked", text=""), verdict) for reply, verdict in replies]
    found = estimator().combine(blocked)
    assert (found.value, found.log_confidence, found.n) == (pytest.approx(math.log(0.98)), None, 2)
    silent = estimator().combine([blocked[0], replies[1]])  # one had a text and no log-probabilities
    assert silent.value is None
    assert "no log-probabilities" in silent.error


def test_the_probability_is_floored():
    found = estimator(epsilon=0.02).combine(judged((0.0, None, None), (1.0, None, None)))
    assert found.log_refusal == pytest.approx(math.log(0.02) / 2)


def test_the_paper_gives_the_default_weight():
    assert estimator().confidence_weight == 0.03
    assert (Sampling().samples, Sampling().max_tokens, Sampling().top_p, Sampling().top_k) == (10, 50, 0.995, 30)


def test_all_samples_of_all_instructions_are_one_batch_with_seeds_of_their_own():
    target = Echo(p_fail=0.0)
    estimator(target=target, sampling=Sampling(samples=4, system="be kind")).estimate(instructions("x", "z"), seed=5)
    (batch,) = target.batches
    assert len(batch) == 8
    assert len({request.seed for request in batch}) == 8
    assert [request.sample for request in batch] == [0, 1, 2, 3] * 2
    assert all([turn.role for turn in request.messages] == ["system", "user"] for request in batch)
    assert [request.messages[-1].content for request in batch] == ["x"] * 4 + ["z"] * 4


def test_the_rate_counts_replies_that_are_more_likely_refusals_than_not():
    target = Echo(p_fail=0.3)
    (found,) = Rate(target=target, refusal=SorryJudge(), sampling=Sampling(samples=60)).estimate(
        instructions("x"), seed=2
    )
    replies = target.complete(target.batches[0])
    refusals = sum("sorry" in reply.text for reply in replies)
    failed = sum(reply.error is not None for reply in replies)
    assert failed > 5
    assert (found.n, found.n_unscored) == (60 - failed, failed)
    assert found.value == pytest.approx(refusals / (60 - failed))
    deaf = Rate(target=Echo(p_fail=1.1), refusal=SorryJudge(), sampling=Sampling())
    (none,) = deaf.estimate(instructions("x"), seed=2)
    assert none.value is None
    assert none.error


def test_the_constant_is_constant():
    found = Constant(value=0.5).estimate(instructions("x", "z"), seed=1)
    assert list(itertools.chain.from_iterable((f.value, f.error) for f in found)) == [0.5, None, 0.5, None]
