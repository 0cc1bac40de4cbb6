"""What a class's signature says of the node that fills it: types, ports and unknown keys. Builds nothing."""

import dataclasses
import difflib
import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from evorefuse import ports

PORTS = {kind for _, kind in inspect.getmembers(ports, inspect.isclass) if kind.__module__ == ports.__name__}
_SHOWN = (str, int, float, bool, list, tuple, type(None))  # what a person typed; larger things would drown the message


class ConfigError(ValueError):
    """The configuration does not fit, with the key, what was got, and how to mend it."""


def locate(path: str) -> Any:
    """The class or function at a dotted ``path``.

    Raises:
        ConfigError: where it cannot be imported, with the cause.
    """
    module, _, name = path.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(f"cannot load {path!r}: {error}") from error


def check(kind: Any, value: Any, *, key: str) -> Any:
    """``value`` as type ``kind``; unknown keys are refused at every depth.

    Raises:
        ConfigError: naming the key, what was got and what was expected.
    """
    _refuse_unknown(kind, value, key=key)
    try:
        return TypeAdapter(kind).validate_python(value)
    except ValidationError as error:
        faults = [
            f"{'.'.join([key, *map(str, fault['loc'])])}: {fault['msg'].removeprefix('Value error, ')}"
            + (f", got {fault['input']!r}" if fault["type"] != "missing" and isinstance(fault["input"], _SHOWN) else "")
            for fault in error.errors()
        ]
        raise ConfigError("; ".join(faults)) from error


def _refuse_unknown(kind: Any, value: Any, *, key: str) -> None:
    if dataclasses.is_dataclass(kind) and isinstance(value, Mapping):
        known = {field.name: field.type for field in dataclasses.fields(kind)}
        expect_keys(value, known, where=key)
        hints = get_type_hints(kind)
        for name, item in value.items():
            _refuse_unknown(hints.get(name), item, key=f"{key}.{name}")
    elif get_origin(kind) in (tuple, list, Sequence) and isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            _refuse_unknown(get_args(kind)[0], item, key=f"{key}.{index}")


def expect_keys(given: Mapping[str, Any], known: Mapping[str, Any] | Sequence[str], *, where: str) -> None:
    """Refuse keys that nothing reads.

    Raises:
        ConfigError: naming each, with the likeliest meant.
    """
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name, list(known), n=1)
            meant = f"; did you mean {close[0]!r}?" if close else ""
            prefix = f"{where}." if where else ""
            raise ConfigError(f"unknown key {prefix}{name}{meant} (known here: {', '.join(sorted(known))})")


def parameters(kind: Any) -> dict[str, inspect.Parameter]:
    """The keyword parameters of a class or function, with their annotations evaluated."""
    return dict(inspect.signature(kind, eval_str=True).parameters)


def is_mapping_of_ports(annotation: Any) -> bool:
    """Whether a parameter takes several ports of a kind by name."""
    return get_origin(annotation) is Mapping and get_args(annotation)[1] in PORTS


def expect_port(node: Any, *, key: str) -> None:
    """Refuse a node that does not name its class.

    Raises:
        ConfigError: naming the key and what was got.
    """
    if not (isinstance(node, Mapping) and "_target_" in node):
        raise ConfigError(f"{key} must name its class in _target_, got {node!r} (to leave an entry out: ~{key})")


def ports_in(node: Any, *, key: str) -> list[tuple[str, Mapping[str, Any]]]:
    """Every mapping with a ``_target_`` in ``node``, with its key; nested ones too."""
    if not isinstance(node, Mapping):
        return []
    own = [(key, node)] if "_target_" in node else []
    return own + [found for name, value in node.items() for found in ports_in(value, key=f"{key}.{name}")]
