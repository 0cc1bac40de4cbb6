"""Language models in a configuration: what runs them, what of them decides a reply, and which of them are the same."""

import dataclasses
from collections.abc import Mapping
from typing import Any, get_args, get_type_hints

from evorefuse.signature import ConfigError, check, expect_port, locate, parameters, ports_in

# Each role with the key of its node; `judge` alone is a stage's.
ROLES = {"target": "target", "writer": "writer", "judge": "judge_model"}
ENGINES = ("engine", "api")  # what runs a model: the first that takes its kind


def role_of(key: str) -> str:
    """The role that a model at ``key`` plays: `judge` at `safety.judges.second.judge`; else the key itself."""
    names = {node: role for role, node in ROLES.items()} | {role: role for role in ROLES}
    return next((names[part] for part in reversed(key.split(".")) if part in names), key)


def run_by(model: Any, engines: Mapping[str, Any], *, key: str) -> dict[str, Any]:
    """The node of a language model: that of the first of ``engines`` that takes it, with the model in it.

    Raises:
        ConfigError: where none does, with what each takes and the cure.
    """
    if not isinstance(model, Mapping):
        raise ConfigError(f"{key} must be a model (name, source, id …: a file of conf/target), got {model!r}")
    offered: list[str] = []
    for name, node in engines.items():
        expect_port(node, key=name)
        kind = locate(node["_target_"])
        sources = _sources(kind)
        if not sources or model.get("source") in sources:
            return {**node, "model": model}
        offered.append(f"{name} ({kind.__name__}) takes {', '.join(sources)}")
    served = f"target@{key}" if key in ROLES.values() and key != "target" else "target"
    raise ConfigError(
        f"{key}: nothing runs a model with source={model.get('source')!r}: {'; '.join(offered)}. For a model on this "
        f"machine choose engine=hf; for one behind a server {served}=served {key}.id=… {key}.base_url=…"
    )


def _sources(kind: Any) -> tuple[str, ...]:
    """The sources of models that an engine's class takes; empty where it does not tell them apart."""
    known = parameters(kind)
    if "model" not in known:
        raise ConfigError(f"{kind.__name__} runs no models: it has no parameter `model`")
    return get_args(get_type_hints(known["model"].annotation).get("source"))


def is_model(kind: Any) -> bool:
    """Whether a class is a language model."""
    return isinstance(kind, type) and hasattr(kind, "complete") and hasattr(kind, "identity")


def models_in(nodes: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Every language model in ``nodes``, by its key; nested ones too."""
    found = [pair for key, node in nodes.items() for pair in ports_in(node, key=key)]
    return {key: node for key, node in found if is_model(locate(node["_target_"]))}


def without_transport(node: Any) -> Any:
    """``node`` without the keys that its classes call transport: changing those changes no reply."""
    if not isinstance(node, Mapping):
        return node
    if "_target_" not in node:
        return {name: without_transport(value) for name, value in node.items()}
    kind = locate(node["_target_"])
    known = parameters(kind)
    kept: dict[str, Any] = {}
    for name, value in node.items():
        if name in getattr(kind, "TRANSPORT", ()):
            continue
        record = known[name].annotation if name in known else None
        if dataclasses.is_dataclass(record) and isinstance(value, Mapping):
            kept[name] = {key: item for key, item in value.items() if key not in getattr(record, "TRANSPORT", ())}
        else:
            kept[name] = without_transport(value)
    return kept


def refuse_self_judging(nodes: Mapping[str, Any], *, where: str) -> None:
    """Refuse a judge that is the same model as one that it judges: the writer or the target of one stage.

    Raises:
        ConfigError: naming both and the model.
    """
    parts: dict[tuple[Any, ...], dict[str, str]] = {}
    for key, node in models_in(nodes).items():
        parts.setdefault(_model(node, key=key), {}).setdefault(role_of(key), key)
    for model, roles in parts.items():
        for other in ("writer", "target"):
            if "judge" in roles and other in roles:
                raise ConfigError(
                    f"{where}: {roles['judge']} and {roles[other]} are the same model "
                    f"({', '.join(str(part) for part in model if part)}), which would judge its own work. Choose "
                    f"another judge (target@{ROLES['judge']}=…), or say that it is meant: self_judging=true"
                )


def _model(node: Mapping[str, Any], *, key: str) -> tuple[Any, ...]:
    """What makes a model that model and no other, its name aside."""
    record = node.get("model")
    known = parameters(locate(node["_target_"]))
    if record is None or "model" not in known:
        return (str(node),)
    model = check(known["model"].annotation, record, key=f"{key}.model")
    return tuple(getattr(model, name, None) for name in ("source", "id", "revision", "adapter", "base_url"))
