"""The chat protocol of OpenAI and of the servers like it: a request as a body, a body as a reply. Pure."""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, cast

from evorefuse.lm.endpoint import Endpoint, EndpointError
from evorefuse.lm.transport import Fault
from evorefuse.records import Finish, Reply, Request, Usage

FILTERS = re.compile(
    r"content_?filter|content_policy_violation|responsibleaipolicyviolation|\bflagged\b", re.IGNORECASE
)
NO_MODEL = re.compile(r"model_not_found|invalid_model|model\b.{0,80}\b(not found|not exist|unknown)", re.IGNORECASE)
UNSUPPORTED = re.compile(
    r"un(supported|recogni[sz]ed|known|expected)|not (supported|permitted|allowed|available)|does(n't| not) support"
    r"|extra_forbidden|cannot be (set|used)|max-logprobs",
    re.IGNORECASE,
)
NO_MONEY = re.compile(r"insufficient_quota|billing_hard_limit|insufficient balance|credit balance", re.IGNORECASE)
QUOTES = ("input", "ctx", "url", "request", "body")  # what validators repeat of the request in their errors
UNMEASURED = -9999.0  # nats; OpenAI's (and vLLM's) mark for "very unlikely", such as a token not among the top 20
DEEPEST = 20  # no server nests an error deeper; what does is not worth a stack
FINISHES: Mapping[str, Finish] = {"stop": "stop", "length": "length", "content_filter": "blocked"}


def body_of(request: Request, endpoint: Endpoint) -> dict[str, Any]:
    """What is sent for a request: all that the server honours of it, and nothing that it refuses."""
    turns = [{"role": turn.role, "content": turn.content} for turn in request.messages]
    if endpoint.system is not None and not any(turn["role"] == "system" for turn in turns):
        turns.insert(0, {"role": "system", "content": endpoint.system})
    body: dict[str, Any] = {
        "model": endpoint.id,
        "messages": turns,
        "temperature": request.temperature,
        "top_p": request.top_p,
        endpoint.max_tokens_key: request.max_tokens,
    }
    if endpoint.top_k and request.top_k > 0:
        body["top_k"] = request.top_k
    if endpoint.seed:
        body["seed"] = request.seed % 2**31
    if endpoint.logprobs and request.logprobs:
        body["logprobs"] = True
    if request.schema is not None and endpoint.json == "schema":
        schema = {"name": "reply", "strict": True, "schema": json.loads(request.schema)}
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif request.schema is not None and endpoint.json == "object":
        body["response_format"] = {"type": "json_object"}
    body.update(endpoint.extra)
    return {name: value for name, value in body.items() if value is not None}


def weight(body: Mapping[str, Any]) -> float:
    """The tokens that a request may cost, for a limit a minute: a third of its letters, and its longest reply."""
    letters = sum(len(turn["content"]) for turn in body["messages"])
    return letters / 3 + (body.get("max_tokens") or body.get("max_completion_tokens") or 0)


def reply_of(text: str, *, body: Mapping[str, Any]) -> Reply:
    """The reply in the body of a 200.

    Tokens are counted by the server; where it does not count them, a quarter of the letters stands in, so that a budget
    in tokens never reads 0. ``logprobs`` are those that came, and None where any is missing, odd or not measured.

    Raises:
        Fault: for what is no reply (`malformed`), or not one choice (`choices`).
    """
    payload = _decode(text)
    choices = payload.get("choices")
    if not isinstance(choices, list):
        raise Fault("malformed", f"no choices in {summary(payload)}")
    if len(choices) != 1:
        raise Fault("choices", f"{len(choices)} choices in place of 1")
    choice = _mapping(choices[0])
    message = _mapping(choice.get("message"))
    if not message:
        raise Fault("malformed", f"no message in {summary(payload)}")
    said = _text(message)
    usage = _usage(payload.get("usage"), body=body, said=said)
    reason = str(choice.get("finish_reason"))
    finish = FINISHES.get(reason.partition(":")[0])
    if finish is None:
        return Reply(text="", finish="error", usage=usage, error=f"the reply ended by {reason!r}, not as a text")
    logprobs = _logprobs(_mapping(choice.get("logprobs")).get("content"), said) if body.get("logprobs") else None
    return Reply(text=said, finish=finish, logprobs=logprobs, usage=usage)


def summary(payload: Any) -> str:
    """What a server said of an error, or what it sent, on one line of at most 200 letters."""
    found = payload
    if isinstance(payload, Mapping):
        content = cast(Mapping[str, Any], payload)
        error = content.get("error", content.get("detail", content))
        found = _mapping(error).get("message") or error
    return " ".join(signs(found).split())[:200]


def refused_field(payload: Any, body: Mapping[str, Any]) -> str | None:
    """The field of ``body`` that a server refuses in a 400 or 422; None where that is not what it says."""
    said = signs(payload)
    if not UNSUPPORTED.search(said):
        return None
    named = _mapping(_mapping(payload).get("error")).get("param")
    if isinstance(named, str) and named.partition(".")[0] in body:
        return named
    options = [name for name in body if name not in ("model", "messages")]
    return next((name for name in options if re.search(rf"\b{name}\b", said)), None)


def signs(payload: Any, *, depth: int = 0) -> str:
    """All that an error says of itself, without what it quotes of the request (which may say anything)."""
    if isinstance(payload, str) or depth > DEEPEST:
        return payload if isinstance(payload, str) else ""
    if isinstance(payload, Mapping):
        items = cast(Mapping[str, Any], payload).items()
        return " ".join(signs(value, depth=depth + 1) for name, value in items if name not in QUOTES)
    if isinstance(payload, list):
        return " ".join(signs(value, depth=depth + 1) for value in cast(list[Any], payload))
    return str(payload)


def is_filtered(status: int, payload: Any) -> bool:
    """Whether an error says that a provider's filter kept the request or the reply back."""
    return status in (400, 403, 422) and bool(FILTERS.search(signs(payload)))


def set_up_fault(
    status: int, payload: Any, told: str, *, endpoint: Endpoint, body: Mapping[str, Any]
) -> EndpointError | None:
    """What must be mended before any request can succeed; None where the error is this request's own.

    ``told`` is what the server said, without the key. A 401's text is left out: it often quotes a part of the key.
    """
    url, said = endpoint.base_url, signs(payload)
    if status == 402 or NO_MONEY.search(said):
        return EndpointError(f"{url} will not serve this account ({status}): {told}")
    if status in (401, 403):
        variable, why = endpoint.key_variable, "" if status == 401 else f": {told}"
        if variable is None:
            return EndpointError(
                f"{url} asks for a key ({status}{why}). Name the variable that holds it: key_variable."
            )
        return EndpointError(
            f"the key in {variable} was not accepted by {url} ({status}{why}). Is it current, and allowed this model?"
        )
    if status == 404 or (status in (400, 422) and NO_MODEL.search(said)):
        return EndpointError(
            f"{url} knows no model {endpoint.id!r} ({status}: {told}). Check id and base_url of model "
            f"{endpoint.name!r}; {url.rstrip('/')}/models lists what is there."
        )
    field = refused_field(payload, body) if status in (400, 422) else None
    if field is not None:
        return EndpointError(
            f"{url} refuses the field {field!r} for model {endpoint.id!r} ({status}: {told}). Leave it out by "
            f"+target.extra.{field.partition('.')[0]}=null (or the role's own node in place of target)."
        )
    return None


def read_error(text: str) -> Any:
    """The body of a server's error, as a value where it is JSON and as text where not."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _decode(text: str) -> Mapping[str, Any]:
    try:
        payload = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Fault("malformed", f"the body is no JSON: {' '.join(text.split())[:100]!r}") from error
    if not isinstance(payload, Mapping):
        raise Fault("malformed", f"the body is no object: {' '.join(text.split())[:100]!r}")
    return cast(Mapping[str, Any], payload)


def _mapping(value: Any) -> Mapping[str, Any]:
    return cast(Mapping[str, Any], value) if isinstance(value, Mapping) else {}


def _text(message: Mapping[str, Any]) -> str:
    """What was said; a refusal in its own field is text too."""
    said = message.get("content") or message.get("refusal") or ""
    if not isinstance(said, str):
        raise Fault("malformed", f"the content is no text but {type(said).__name__}")
    return said


def _logprobs(content: Any, said: str) -> tuple[float, ...] | None:
    """Natural-log probabilities of the tokens, nats; None unless every one was measured.

    A mark such as ``UNMEASURED`` is no measurement: in a mean it would outweigh all other tokens of the reply.
    """
    if not isinstance(content, Sequence) or isinstance(content, str):
        return None
    found = [_mapping(entry).get("logprob") for entry in cast(Sequence[Any], content)]
    if (said and not found) or not all(_is_logprob(value) for value in found):
        return None
    return tuple(float(cast(float, value)) for value in found)


def _is_logprob(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and UNMEASURED < value <= 1e-3


def _usage(given: Any, *, body: Mapping[str, Any], said: str) -> Usage:
    counted = _mapping(given)
    read, written = counted.get("prompt_tokens"), counted.get("completion_tokens")
    if not _is_count(read):
        read = math.ceil(sum(len(turn["content"]) for turn in body["messages"]) / 4)
    if not _is_count(written):
        written = math.ceil(len(said) / 4)
    return Usage(prompt_tokens=cast(int, read), completion_tokens=cast(int, written))


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
