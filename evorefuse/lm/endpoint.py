"""Which served model: the record that a ``conf/target`` file with ``source: served`` fills."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """US dollars a million tokens."""

    read: float = 0.0
    written: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A model behind an OpenAI-compatible server, and what that server honours.

    ``id`` is the model's name there; ``key_variable`` names the environment variable that holds the key (null: none is
    needed). ``system`` is the system prompt where a request brings none (null: none is sent). ``logprobs``, ``seed``
    and ``json`` (how structured replies are asked for) say what the server really gives: the doctor finds out.
    ``extra`` is sent along in every request's body.

    Raises:
        ValueError: where the key's variable is not set.
    """

    TRANSPORT: ClassVar[frozenset[str]] = frozenset({"base_url", "key_variable", "price"})

    name: str
    source: Literal["served"]
    id: str
    base_url: str = "https://api.openai.com/v1"
    key_variable: str | None = None
    system: str | None = None
    logprobs: bool = True
    seed: bool = True
    json: Literal["schema", "object", "text"] = "schema"
    price: Price = field(default_factory=Price)
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])
    licence: str = "unknown"

    def __post_init__(self) -> None:
        """Refuse a model whose key is not at hand."""
        if self.key_variable and not os.environ.get(self.key_variable):
            raise ValueError(
                f"model {self.name!r} needs a key in the environment variable {self.key_variable}, which is not set: "
                f"export {self.key_variable}=… and run the same command again."
            )
