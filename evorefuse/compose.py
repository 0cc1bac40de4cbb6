"""From a plain configuration to checked settings and built ports. Knows signatures, not Hydra.

A port's class is named by its node's ``_target_``; its parameters are the node's keys. A parameter whose type is a port
and which the node leaves out is a role of its own, filled from the node of that name.
"""

import dataclasses
import difflib
import importlib
import inspect
import json
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from evorefuse import ports

PORTS = {kind for _, kind in inspect.getmembers(ports, inspect.isclass) if kind.__module__ == ports.__name__}
LANGUAGE_MODELS = {"target": ("engine", "target")}


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
            f"{'.'.join([key, *map(str, fault['loc'])])}: {fault['msg']}"
            + ("" if fault["type"] == "missing" else f", got {fault['input']!r}")
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


class Composer:
    """Builds roles from one configuration, each once, and remembers which nodes were used."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        """Compose from ``config``: plain dictionaries, interpolations resolved."""
        self._config = config
        self._built: dict[str, Any] = {}

    def needs(self, stage: str, run: Any) -> dict[str, Any]:
        """The nodes that a stage's ``run`` reads, by name, its own first: what decides its results.

        Every class is located and every value checked, but nothing is built.

        Raises:
            ConfigError: at the first thing that does not fit.
        """
        found: dict[str, Any] = {}
        for name, parameter in parameters(run).items():
            if name in ("store", "tracker", "progress"):
                continue
            if name == "cfg":
                found[stage] = self._settings_of(stage, run)
                check(parameter.annotation, found[stage], key=stage)
            elif name == "seed":
                found["seed"] = check(int, self._node("seed"), key="seed")
            else:
                self._collect(name, parameter.annotation, stage=stage, found=found)
        return found

    def arguments(self, stage: str, run: Any) -> dict[str, Any]:
        """What to call a stage's ``run`` with, but for store, tracker and progress: settings checked, roles built."""
        made: dict[str, Any] = {}
        for name, parameter in parameters(run).items():
            if name == "cfg":
                made[name] = check(parameter.annotation, self._settings_of(stage, run), key=stage)
            elif name == "seed":
                made[name] = check(int, self._node("seed"), key="seed")
            elif name not in ("store", "tracker", "progress"):
                made[name] = self._role(name, parameter.annotation, stage=stage)
        return made

    def build(self, name: str) -> Any:
        """The port that the top-level node ``name`` describes (such as the tracker)."""
        return self._build(self._node(name), key=name)

    def _settings_of(self, stage: str, run: Any) -> dict[str, Any]:
        """The stage's node without the roles that stand in it."""
        node = self._node(stage)
        if not isinstance(node, Mapping):
            raise ConfigError(f"{stage} must be a mapping of settings, got {node!r}")
        return {key: value for key, value in node.items() if key not in parameters(run)}

    def _node(self, name: str) -> Any:
        if name not in self._config:
            raise ConfigError(f"the configuration has no {name!r}, which this stage needs")
        return self._config[name]

    def _where(self, name: str, *, stage: str) -> tuple[str, Any]:
        """The node of a role and its key: in the stage's own node first, then at the top."""
        own = self._config.get(stage)
        if isinstance(own, Mapping) and name in own:
            return f"{stage}.{name}", own[name]
        if name in LANGUAGE_MODELS:
            engine, model = LANGUAGE_MODELS[name]
            return name, {**self._node(engine), "model": self._node(model)}
        return name, self._node(name)

    def _collect(self, name: str, annotation: Any, *, stage: str, found: dict[str, Any]) -> None:
        key, node = self._where(name, stage=stage)
        found[key] = node
        for own_key, own in _ports_in(node, key=key):
            kind = locate(own["_target_"])
            for role in self._missing_roles(kind, own, key=own_key):
                self._collect(role, None, stage=stage, found=found)
        if annotation is None or annotation in PORTS:
            _expect_port(node, key=key)
        elif get_origin(annotation) is Mapping:
            for own_key, own in check(dict[str, Any], node, key=key).items():
                _expect_port(own, key=f"{key}.{own_key}")
        elif not _ports_in(node, key=key):
            check(annotation, node, key=key)

    def _missing_roles(self, kind: Any, node: Mapping[str, Any], *, key: str) -> list[str]:
        """Check the node's values against the class; the names of the roles that it leaves to others."""
        known = parameters(kind)
        given = {name: value for name, value in node.items() if name != "_target_"}
        expect_keys(given, known, where=key)
        for name, value in given.items():
            if not (isinstance(value, Mapping) and "_target_" in value):
                check(known[name].annotation, value, key=f"{key}.{name}")
        roles = [name for name, p in known.items() if name not in given and p.annotation in PORTS]
        absent = [n for n, p in known.items() if n not in given and n not in roles and p.default is p.empty]
        if absent:
            raise ConfigError(f"{key}: {kind.__name__} needs {', '.join(absent)}")
        return roles

    def _role(self, name: str, annotation: Any, *, stage: str) -> Any:
        key, node = self._where(name, stage=stage)
        if isinstance(node, Mapping) and "_target_" in node:
            return self._build(node, key=key, stage=stage)
        if get_origin(annotation) is Mapping:
            return {own: self._build(value, key=f"{key}.{own}", stage=stage) for own, value in node.items()}
        return check(annotation, node, key=key)

    def _build(self, node: Any, *, key: str, stage: str = "") -> Any:
        """The object of a node; equal nodes with equal roles are built once (a model is loaded once)."""
        kind = locate(node["_target_"])
        roles = self._missing_roles(kind, node, key=key)
        made = {role: self._role(role, None, stage=stage) for role in roles}
        known = parameters(kind)
        for name, value in node.items():
            if isinstance(value, Mapping) and "_target_" in value:
                made[name] = self._build(value, key=f"{key}.{name}", stage=stage)
            elif name != "_target_":
                made[name] = check(known[name].annotation, value, key=f"{key}.{name}")
        identity = json.dumps([node, {role: id(made[role]) for role in roles}], sort_keys=True, default=str)
        if identity not in self._built:
            self._built[identity] = kind(**made)
        return self._built[identity]


def _expect_port(node: Any, *, key: str) -> None:
    if not (isinstance(node, Mapping) and "_target_" in node):
        raise ConfigError(f"{key} must name its class in _target_, got {node!r} (to leave an entry out: ~{key})")


def _ports_in(node: Any, *, key: str) -> list[tuple[str, Mapping[str, Any]]]:
    """Every mapping with a ``_target_`` in ``node``, with its key; nested ones too."""
    if not isinstance(node, Mapping):
        return []
    own = [(key, node)] if "_target_" in node else []
    return own + [found for name, value in node.items() for found in _ports_in(value, key=f"{key}.{name}")]
