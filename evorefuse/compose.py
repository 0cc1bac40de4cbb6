"""From a plain configuration to checked settings and built ports. Knows signatures, not Hydra.

A port's class is named by its node's ``_target_``; its parameters are the node's keys. A parameter whose type is a port
and which the node leaves out is a role of its own, filled from the node of that name. A language model may be written
as its record alone (a file of conf/target): `engine` or `api` runs it. Served models answer through the response cache
and are counted in the ledger.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any, get_args, get_origin

from evorefuse.ledger import Ledger
from evorefuse.lm.asker import Asker, recipe
from evorefuse.lm.cached import Cached
from evorefuse.lm.rehearsal import Rehearsal, Scatter
from evorefuse.ports import LM, Streaming
from evorefuse.responses import Responses
from evorefuse.roles import ENGINES, ROLES, is_model, models_in, refuse_self_judging, role_of, run_by, without_transport
from evorefuse.signature import (
    PORTS,
    ConfigError,
    check,
    expect_keys,
    expect_port,
    is_mapping_of_ports,
    locate,
    parameters,
    ports_in,
)
from evorefuse.store import encode

__all__ = ["PORTS", "Composer", "ConfigError", "check", "expect_keys", "identities", "locate", "parameters", "services"]

SERVICES = ("store", "tracker", "progress")


def services(run: Any, **offered: Any) -> dict[str, Any]:
    """Those of the offered services that a stage's ``run`` asks for."""
    return {name: offered[name] for name in parameters(run) if name in SERVICES}


def identities(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What each built role says of itself (model, revision, hashes), and the roles within it, by dotted name."""
    found: dict[str, Any] = {}
    for name, role in arguments.items():
        if isinstance(identity := getattr(role, "identity", None), Mapping):
            found[name] = encode(identity)
        inner: Mapping[str, Any] = role if isinstance(role, Mapping) else {}
        if is_dataclass(role) and not isinstance(role, type):
            inner = {field.name: getattr(role, field.name) for field in fields(role)}
        found |= {f"{name}.{key}": value for key, value in identities(inner).items()}
    return found


class Composer:
    """Builds roles from one configuration, each once, and remembers which nodes were used."""

    def __init__(
        self,
        config: Mapping[str, Any],
        *,
        stages: Mapping[str, Callable[..., Any]] | None = None,
        ledger: Ledger | None = None,
        rehearse: bool = False,
    ) -> None:
        """Compose from ``config``: plain dictionaries, interpolations resolved.

        ``stages`` are the runs whose language models a stage with the parameter ``models`` receives. Under ``rehearse``
        a stand-in takes the place of every model, and no key is needed.
        """
        self._config = config
        self._stages = stages or {}
        self._ledger = ledger or Ledger()
        self._rehearse = rehearse
        self._responses: Responses | None = None
        self._asker: Asker | None = None
        self._built: dict[str, Any] = {}

    def needs(self, stage: str, run: Any) -> dict[str, Any]:
        """The nodes that a stage's ``run`` reads, by name, its own first: what decides its results.

        Every class is located and every value checked, but nothing is built. Transport is checked and left out.

        Raises:
            ConfigError: at the first thing that does not fit.
        """
        found = self._needs(stage, run)
        meant = check(bool, self._config.get("self_judging", False), key="self_judging")
        if "models" not in parameters(run) and not meant:
            refuse_self_judging(found, where=stage)
        return {key: without_transport(node) for key, node in found.items()}

    def models(self, stage: str, run: Any) -> dict[str, Any]:
        """The nodes of the language models that a stage asks, by key."""
        return dict(models_in(self._needs(stage, run)))

    def arguments(self, stage: str, run: Any) -> dict[str, Any]:
        """What to call a stage's ``run`` with, but for store, tracker and progress: settings checked, roles built."""
        made: dict[str, Any] = {}
        for name, parameter in parameters(run).items():
            if name == "cfg":
                made[name] = check(parameter.annotation, self._settings_of(stage, run), key=stage)
            elif name == "seed":
                made[name] = check(int, self._node("seed"), key="seed")
            elif name == "models":
                nodes = self._all_models()
                made[name] = {
                    role_of(key) if key in ROLES.values() else key: self._build(node, key=key, stage=stage)
                    for key, node in nodes.items()
                }
            elif name not in SERVICES:
                made[name] = self._role(name, parameter.annotation, stage=stage)
        return made

    def build(self, name: str) -> Any:
        """The port that the top-level node ``name`` describes (such as the tracker)."""
        return self._build(self._node(name), key=name)

    def close(self) -> None:
        """Close the response cache, where one was opened, and the process that fills it."""
        if self._asker is not None:
            self._asker.close()
            self._asker = None
        if self._responses is not None:
            self._responses.close()
            self._responses = None

    def _needs(self, stage: str, run: Any) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, parameter in parameters(run).items():
            if name == "cfg":
                found[stage] = self._settings_of(stage, run)
                check(parameter.annotation, found[stage], key=stage)
            elif name == "seed":
                found["seed"] = check(int, self._node("seed"), key="seed")
            elif name == "models":
                found |= self._all_models()
            elif name not in SERVICES:
                self._collect(name, parameter.annotation, stage=stage, found=found)
        return found

    def _all_models(self) -> dict[str, Any]:
        """Every language model that the stages of this run ask, by key."""
        asking = {name: run for name, run in self._stages.items() if "models" not in parameters(run)}
        return {key: node for name, run in asking.items() for key, node in self.models(name, run).items()}

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

    def _where(self, name: str, annotation: Any, *, stage: str) -> tuple[str, Any]:
        """The key of a role, and its node with what runs its models: the stage's own first, then the common one."""
        own = self._config.get(stage)
        if isinstance(own, Mapping) and name in own:
            key, node = f"{stage}.{name}", own[name]
        else:
            key = ROLES.get(name, name)
            node = self._node(key)
        return key, self._filled(node, LM if name in ROLES else annotation, key=key)

    def _filled(self, node: Any, annotation: Any, *, key: str) -> Any:
        """``node`` with every language model that is written as a record alone put into the engine that runs it."""
        if not isinstance(node, Mapping):
            return self._run_by(node, key=key) if annotation in (LM, Streaming) else node
        if "_target_" in node:
            known = parameters(locate(node["_target_"]))
            types = {name: parameter.annotation for name, parameter in known.items()}
            filled = {name: self._filled(value, types.get(name), key=f"{key}.{name}") for name, value in node.items()}
            return self._keyless(filled) if self._rehearse else filled
        if is_mapping_of_ports(annotation):
            kind = get_args(annotation)[1]
            return {name: self._filled(value, kind, key=f"{key}.{name}") for name, value in node.items()}
        return self._run_by(node, key=key) if annotation in (LM, Streaming) else node

    def _run_by(self, model: Any, *, key: str) -> Any:
        self._node(ENGINES[0])
        node = run_by(model, {name: self._config[name] for name in ENGINES if name in self._config}, key=key)
        return self._keyless(node) if self._rehearse else node

    def _keyless(self, node: dict[str, Any]) -> dict[str, Any]:
        """The node of a model that asks for no key, as in a dry run it is not asked."""
        model = node.get("model")
        if not isinstance(model, Mapping) or "key_variable" not in model:
            return node
        return {**node, "model": {**model, "key_variable": None}}

    def _collect(self, name: str, annotation: Any, *, stage: str, found: dict[str, Any]) -> None:
        key, node = self._where(name, annotation, stage=stage)
        found[key] = node
        for own_key, own in ports_in(node, key=key):
            kind = locate(own["_target_"])
            for role, kind_of_role in self._missing_roles(kind, own, key=own_key).items():
                self._collect(role, kind_of_role, stage=stage, found=found)
        if is_model(annotation) and annotation not in PORTS:
            _expect_engine(annotation, node, stage=stage, key=key)
        if annotation in PORTS:
            expect_port(node, key=key)
        elif get_origin(annotation) is Mapping:
            for own_key, own in check(dict[str, Any], node, key=key).items():
                expect_port(own, key=f"{key}.{own_key}")
        elif not ports_in(node, key=key):
            check(annotation, node, key=key)

    def _missing_roles(self, kind: Any, node: Mapping[str, Any], *, key: str) -> dict[str, Any]:
        """Check the node's values against the class; the roles that it leaves to others, with their types."""
        known = parameters(kind)
        given = {name: value for name, value in node.items() if name != "_target_"}
        expect_keys(given, known, where=key)
        for name, value in given.items():
            if is_mapping_of_ports(known[name].annotation):
                for own, item in check(dict[str, Any], value, key=f"{key}.{name}").items():
                    expect_port(item, key=f"{key}.{name}.{own}")
            elif not (isinstance(value, Mapping) and "_target_" in value):
                check(known[name].annotation, value, key=f"{key}.{name}")
        roles = {name: p.annotation for name, p in known.items() if name not in given and p.annotation in PORTS}
        absent = [n for n, p in known.items() if n not in given and n not in roles and p.default is p.empty]
        if absent:
            raise ConfigError(f"{key}: {kind.__name__} needs {', '.join(absent)}")
        return roles

    def _role(self, name: str, annotation: Any, *, stage: str) -> Any:
        key, node = self._where(name, annotation, stage=stage)
        if isinstance(node, Mapping) and "_target_" in node:
            return self._build(node, key=key, stage=stage)
        if get_origin(annotation) is Mapping:
            return {own: self._build(value, key=f"{key}.{own}", stage=stage) for own, value in node.items()}
        return check(annotation, node, key=key)

    def _build(self, node: Any, *, key: str, stage: str = "") -> Any:
        """The object of a node; equal nodes with equal roles are built once (a model is loaded once)."""
        kind = locate(node["_target_"])
        roles = self._missing_roles(kind, node, key=key)
        made = {role: self._role(role, annotation, stage=stage) for role, annotation in roles.items()}
        known = parameters(kind)
        plain: dict[str, Any] = {}
        for name, value in node.items():
            if isinstance(value, Mapping) and "_target_" in value:
                made[name] = self._build(value, key=f"{key}.{name}", stage=stage)
            elif name != "_target_" and is_mapping_of_ports(known[name].annotation):
                made[name] = {own: self._build(v, key=f"{key}.{name}.{own}", stage=stage) for own, v in value.items()}
            elif name != "_target_":
                plain[name] = check(known[name].annotation, value, key=f"{key}.{name}")
        ids = {n: {k: id(v) for k, v in m.items()} if isinstance(m, dict) else id(m) for n, m in made.items()}
        identity = json.dumps([node, ids], sort_keys=True, default=str)
        if identity not in self._built:
            self._built[identity] = self._make(kind, {**made, **plain})
        return self._built[identity]

    def _make(self, kind: Any, given: Mapping[str, Any]) -> Any:
        """The object itself; around a served model what remembers and counts, for any in a dry run its stand-in."""
        if self._rehearse and is_model(kind):
            price = getattr(given.get("model"), "price", None)
            dollars = (price.read, price.written) if price is not None else (0.0, 0.0)
            return Rehearsal(model=given.get("model"), ledger=self._ledger, price=dollars)
        if self._rehearse and hasattr(kind, "embed"):
            return Scatter()
        made = kind(**given)
        if not (is_model(kind) and isinstance(made, Streaming)):
            return made
        if self._responses is None and (path := self._config.get("cache")):
            self._responses = Responses(Path(path))
            self._asker = Asker(self._responses)
        elsewhere = partial(self._asker.stream, recipe(kind, given)) if self._asker else None
        return Cached(lm=made, responses=self._responses, ledger=self._ledger, elsewhere=elsewhere)


def _expect_engine(kind: Any, node: Any, *, stage: str, key: str) -> None:
    """Refuse a model that another engine runs than the one that a stage is about.

    Raises:
        ConfigError: naming both.
    """
    got = locate(node["_target_"])
    if not issubclass(got, kind):
        raise ConfigError(
            f"{stage} works with {kind.__name__} alone, and {key} is run by {got.__name__}: choose a model on this "
            f"machine, such as {key}=smollm2, or leave {stage} out of stages"
        )
