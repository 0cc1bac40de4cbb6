"""A language model that says what it was told to say. For tests, so there is no YAML file for it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from evorefuse.records import Message, Reply, Request, Usage

Script = Mapping[str, str | Reply | Sequence[str | Reply]] | Callable[[Request], str | Reply]


class Scripted:
    """Replies from a script, and fails on a prompt that it does not hold.

    ``replies`` maps the last user message to a reply, or to several, of which ``request.sample`` picks one in turn;
    or it is a function of the Request. ``requests`` records what was asked, in order.
    """

    def __init__(
        self, *, replies: Script, name: str = "scripted", log_probs: Mapping[str, float] | None = None
    ) -> None:
        """Keep the script; ``log_probs`` maps an opening to its log-probability, whatever the prompt."""
        self.name = name
        self.requests: list[Request] = []
        self._replies = replies
        self._log_probs = log_probs or {}

    @property
    def identity(self) -> Mapping[str, Any]:
        """The script's name."""
        return {"name": self.name}

    def complete(self, requests: Sequence[Request]) -> list[Reply]:
        """One reply a request, in order.

        Raises:
            KeyError: on a prompt that the script does not hold.
        """
        return [self._reply(request) for request in requests]

    def log_prob(self, prompts: Sequence[tuple[Message, ...]], openings: Sequence[str]) -> list[float]:
        """The scripted log-probability of each opening, in nats.

        Raises:
            KeyError: on an opening that the script does not hold.
        """
        return [self._log_probs[opening] for _, opening in zip(prompts, openings, strict=True)]

    def _reply(self, request: Request) -> Reply:
        self.requests.append(request)
        if callable(self._replies):
            return _as_reply(self._replies(request), request)
        prompt = next((turn.content for turn in reversed(request.messages) if turn.role == "user"), "")
        if prompt not in self._replies:
            raise KeyError(f"{self.name}: the script has no reply to {prompt!r}; it knows {sorted(self._replies)[:5]}")
        reply = self._replies[prompt]
        if not isinstance(reply, str | Reply):
            reply = reply[request.sample % len(reply)]
        return _as_reply(reply, request)


def _as_reply(reply: str | Reply, request: Request) -> Reply:
    if isinstance(reply, Reply):
        return reply
    words = len(reply.split())
    logprobs = (-1.0,) * (words + 1) if request.logprobs else None
    return Reply(text=reply, finish="stop", logprobs=logprobs, usage=Usage(completion_tokens=words + 1))
