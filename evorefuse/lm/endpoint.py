"""Which served model: the record that a ``conf/target`` file with ``source: served`` fills."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit


class EndpointError(ValueError):
    """A server that no request can succeed with: the key, the model, the address or the settings must be mended."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """US dollars a million tokens."""

    read: float = 0.0
    written: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A model behind an OpenAI-compatible server, and what that server honours.

    ``id`` is the model's name there; ``key_variable`` names the environment variable that holds the key (null: none is
    needed). ``system`` is the system prompt where a request brings none (null: none is sent). ``logprobs``, ``seed``,
    ``top_k`` and ``json`` (how structured replies are asked for) say what the server really gives: the doctor finds
    out. ``max_tokens_key`` is the field that bounds a reply's length; OpenAI's reasoning models know only
    ``max_completion_tokens``. ``extra`` is sent along in every request's body; a null there leaves a field out, such as
    ``temperature`` for a model that refuses it.

    Raises:
        EndpointError: where the key's variable is not set or cannot be a key, or the address is not one.
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
    top_k: bool = False
    json: Literal["schema", "object", "text"] = "schema"
    max_tokens_key: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    price: Price = field(default_factory=Price)
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])
    licence: str = "unknown"

    def __post_init__(self) -> None:
        """Refuse a model that could not be asked."""
        address = urlsplit(self.base_url)
        if address.scheme not in ("http", "https") or not address.hostname:
            raise EndpointError(
                f"model {self.name!r}: base_url must begin with http:// or https:// and name a host, such as "
                f"http://127.0.0.1:8000/v1."
            )
        if address.username or address.password or address.query:
            raise EndpointError(
                f"model {self.name!r}: base_url carries a user, a password or a query, which would be written into "
                f"manifests. Put the key into an environment variable and name it in key_variable."
            )
        self.secret()

    def secret(self) -> str | None:
        """The key, read from the environment each time so that no object holds it; None where none is needed.

        Raises:
            EndpointError: where the variable is not set or holds what no header can carry; without its value.
        """
        if self.key_variable is None:
            return None
        key = os.environ.get(self.key_variable, "")
        if not key:
            raise EndpointError(
                f"model {self.name!r} needs a key in the environment variable {self.key_variable}, which is not set: "
                f"export {self.key_variable}=… and run the same command again."
            )
        if not all(33 <= ord(letter) <= 126 for letter in key):
            raise EndpointError(
                f"the environment variable {self.key_variable} holds spaces, line ends or letters outside ASCII, so it "
                f"cannot be the key of model {self.name!r}: set it again, without a line end."
            )
        return key
