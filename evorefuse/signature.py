"""What a class's signature says of the node that fills it: types, ports, unknown keys, files. Builds nothing."""

import dataclasses
import difflib
import importlib
import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from evorefuse import ports

PORTS = {kind for _, kind in inspect.getmembers(ports, inspect.isclass) if kind.__module__ == ports.__name__}
FILES = ("path", "instructions", "trials", "human", "ours", "pairs", "mined", "cards")  # keys of data files
NAMES = ("id", "push_to", "title")  # keys of what may look like a file and is none
SUFFIXES = (".jsonl", ".csv", ".json", ".txt")
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


def at_home(node: Any, *, key: str = "") -> Any:
    """``node`` with `~` at the beginning of a file's path put for the home folder, at every depth."""
    if isinstance(node, Mapping):
        return {name: at_home(value, key=name) for name, value in node.items()}
    if isinstance(node, list):
        return [at_home(value, key=key) for value in node]
    is_file = isinstance(node, str) and node.startswith("~") and _is_file(key, node)
    return str(Path(node).expanduser()) if is_file else node


def files_in(nodes: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Every data file that the nodes of stages and roles name, with its key; whether it exists or not.

    Only what a class or a stage takes itself is looked at: a row to keep (`where`) may have any name and value.
    """
    found: list[tuple[str, str]] = []
    for name, node in nodes.items():
        own = [(name, node)] if isinstance(node, Mapping) else []
        for key, known in dict(own + ports_in(node, key=name)).items():
            for word, value in known.items():
                values = value if isinstance(value, list) else [value]
                found += [(f"{key}.{word}", v) for v in values if isinstance(v, str) and _is_file(word, v)]
    return list(dict.fromkeys(found))


def expect_files(nodes: Mapping[str, Any], *, run_dir: str) -> None:
    """Refuse a data file that does not exist, but for those that this run's own stages will write.

    Raises:
        ConfigError: naming the key and the file.
    """
    for key, path in files_in(nodes):
        if path.startswith("None/"):
            raise ConfigError(f"{key} needs public_data=<the folder that holds {path.removeprefix('None/')}>")
        if not Path(path).is_relative_to(run_dir) and not Path(path).is_file():
            raise ConfigError(f"{key}: no file at {path}")


def _is_file(key: str, value: str) -> bool:
    """Whether a text is a file's path: by its key, or by folder and suffix; a hub's id and `builtin:…` are none."""
    if not value or key in NAMES or value.startswith("builtin:") or "://" in value or "\n" in value:
        return False
    return key in FILES or (("/" in value or key == "model") and value.lower().endswith(SUFFIXES))
