"""A served model with a memory and a purse: what was answered before is not asked again, nor what is not covered."""

import time
from collections import Counter
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing, contextmanager
from typing import Any, Protocol, cast

from evorefuse.ledger import Cost, Ledger
from evorefuse.ports import LM, Streaming
from evorefuse.records import Reply, Request
from evorefuse.responses import Responses, key_of

_LOOK = 0.2  # seconds between two looks at what another process is asking


class Elsewhere(Protocol):
    """What asks in another process and stores there, such as ``Asker.stream`` with the model filled in."""

    def __call__(self, batch: Mapping[str, Request], *, faults: Counter[str]) -> Generator[tuple[str, Reply]]:
        """Each key with its reply, stored already, as they arrive; ``faults`` gets the attempts that failed."""
        ...


class Cached:
    """Answers from the response cache first, asks ``lm`` for the rest as far as the budget reaches.

    Every reply is kept as it arrives, so a stopped run pays for nothing twice; errors are not kept. Equal requests of
    one batch are asked once. What another process is asking at this moment is waited for. ``responses`` None: no cache.
    With ``elsewhere`` another process asks, so that replies on their way are stored even when this one is killed.
    """

    def __init__(
        self, *, lm: Streaming, responses: Responses | None, ledger: Ledger, elsewhere: Elsewhere | None = None
    ) -> None:
        """Wrap ``lm``."""
        self.lm = lm
        self._elsewhere = elsewhere
        self._responses = responses
        self._ledger = ledger
        self._name = str(lm.identity.get("name") or lm.identity.get("id") or type(lm).__name__)

    @property
    def identity(self) -> Mapping[str, Any]:
        """That of the model within."""
        return self.lm.identity

    def complete(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply a request, in order.

        Raises:
            BudgetError: before the first request that the budget does not cover; replies until then are kept.
            CacheError: where the cache is damaged.
        """
        identity = self.identity
        keys = [key_of(identity, request) for request in requests]
        wanted = dict(zip(keys, requests, strict=True))
        replies: dict[str, Reply] = {}
        try:
            while wanted:
                self._recall(wanted, replies)
                ours = self._responses.claim(list(wanted)) if self._responses else list(wanted)
                if ours:
                    replies |= self._ask({key: wanted.pop(key) for key in ours})
                elif wanted:
                    self._ledger.expect_time()
                    time.sleep(_LOOK)
        finally:
            self._ledger.save()
        return [replies[key] for key in keys]

    def anew(self, requests: Sequence[Request], *, lm: LM | None = None) -> list[Reply]:
        """One reply a request, in order, from the model itself and not kept: for those who examine it. It is paid for.

        ``lm`` is asked in the model's place where it is given: the same one, put differently.

        Raises:
            BudgetError: before the first request that the budget does not cover.
        """
        price, system = self.lm.price, str(self.identity.get("system") or "")
        worst = [Cost.worst(request, price=price, system=system) for request in requests]
        replies: list[Reply] = []
        asked = lm or self.lm
        try:
            while len(replies) < len(requests):
                size = self._ledger.affordable(worst[len(replies) :])
                with self._faults_of(asked):
                    found = asked.complete(requests[len(replies) : len(replies) + size])
                for reply in found:
                    self._ledger.add(self._name, reply, price=price)
                replies += found
        finally:
            self._ledger.save()
        return replies

    def _recall(self, wanted: dict[str, Request], replies: dict[str, Reply]) -> None:
        """Move what is in the cache from ``wanted`` to ``replies``."""
        known = self._responses.get_many(list(wanted)) if self._responses else {}
        for key, reply in known.items():
            del wanted[key]
            replies[key] = reply
            self._ledger.add(self._name, reply, price=self.lm.price, cached=True)

    def _ask(self, wanted: Mapping[str, Request]) -> dict[str, Reply]:
        """The replies of the model, slice by slice, each slice covered by what is left of the budget."""
        price, system = self.lm.price, str(self.identity.get("system") or "")
        replies: dict[str, Reply] = {}
        todo = list(wanted)
        worst = [Cost.worst(request, price=price, system=system) for request in wanted.values()]
        try:
            while todo:
                size = self._ledger.affordable(worst)
                replies |= self._stream({key: wanted[key] for key in todo[:size]})
                todo, worst = todo[size:], worst[size:]
        finally:
            if self._responses and (left := [key for key in wanted if key not in replies or replies[key].error]):
                self._responses.release(left)
        return replies

    def _stream(self, batch: Mapping[str, Request]) -> dict[str, Reply]:
        replies: dict[str, Reply] = {}
        with closing(self._elsewhere_or_here(batch)) as arriving:
            for key, reply in arriving:
                replies[key] = reply
                self._ledger.add(self._name, reply, price=self.lm.price)
        lost = Reply(text="", finish="error", error="the engine gave no reply to this request")
        return {key: replies.get(key, lost) for key in batch}

    def _elsewhere_or_here(self, batch: Mapping[str, Request]) -> Generator[tuple[str, Reply]]:
        """Each key with its reply, as they arrive and stored already."""
        if self._elsewhere is not None:
            faults = Counter[str]()
            try:
                yield from self._elsewhere(batch, faults=faults)
            finally:
                self._ledger.fault(self._name, faults)
            return
        keys = list(batch)

        def keep(index: int, reply: Reply) -> None:
            if self._responses and reply.finish != "error":
                self._responses.put(keys[index], reply)

        stream = cast(Generator[tuple[int, Reply]], self.lm.stream(list(batch.values()), keep=keep))
        with self._faults_of(self.lm), closing(stream) as arriving:
            for index, reply in arriving:
                yield keys[index], reply

    @contextmanager
    def _faults_of(self, lm: LM) -> Generator[None]:
        """Count what goes wrong on the way to the replies of ``lm`` meanwhile."""
        before = dict(getattr(lm, "faults", {}))
        try:
            yield
        finally:
            after: Mapping[str, int] = dict(getattr(lm, "faults", {}))
            self._ledger.fault(self._name, {cause: n - before.get(cause, 0) for cause, n in after.items()})
