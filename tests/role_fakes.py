"""Models near and far, and ports that ask them, for the tests of composing. ``BUILT`` tells what was built."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from evorefuse.ports import LM, Scorer
from evorefuse.records import Reply, Request

BUILT: list[str] = []
ME = __name__


@dataclass(frozen=True, kw_only=True)
class Near:
    """A model on this machine."""

    name: str
    source: Literal["path", "hub"]
    id: str = ""


@dataclass(frozen=True, kw_only=True)
class Price:
    read: float = 0.0
    written: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Distant:
    """A served model."""

    TRANSPORT: ClassVar[frozenset[str]] = frozenset({"base_url", "key_variable", "price"})
    name: str
    source: Literal["served"]
    id: str
    base_url: str = "http://a"
    key_variable: str | None = None
    system: str | None = None
    price: Price = field(default_factory=Price)

    def __post_init__(self) -> None:
        if self.key_variable == "UNSET":
            raise ValueError("model needs a key in UNSET")


@dataclass(frozen=True, kw_only=True)
class Local:
    """Runs models on this machine."""

    model: Near
    device: str = "cpu"

    def __post_init__(self) -> None:
        BUILT.append(f"local {self.model.name}")

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"name": self.model.name}

    def complete(self, requests: Sequence[Request]) -> list[Reply]:
        return [Reply(text="", finish="stop") for _ in requests]


@dataclass(frozen=True, kw_only=True)
class Remote:
    """Asks served models."""

    TRANSPORT: ClassVar[frozenset[str]] = frozenset({"deadline"})
    model: Distant
    deadline: float = 1.0
    style: str = "plain"

    def __post_init__(self) -> None:
        BUILT.append(f"remote {self.model.name}")

    @property
    def identity(self) -> Mapping[str, Any]:
        return {"name": self.model.name}

    @property
    def price(self) -> tuple[float, float]:
        return self.model.price.read, self.model.price.written

    def complete(self, requests: Sequence[Request]) -> list[Reply]:
        return [reply for _, reply in self.stream(requests)]

    def drain(self) -> None:
        """Nothing is ever on its way."""

    def stream(
        self, requests: Sequence[Request], *, keep: Callable[[int, Reply], None] | None = None
    ) -> Iterator[tuple[int, Reply]]:
        for n in range(len(requests)):
            reply = Reply(text="far", finish="stop")
            if keep:
                keep(n, reply)
            yield n, reply


@dataclass(frozen=True, kw_only=True)
class Judging:
    """A scorer that asks a model."""

    judge: LM
    floor: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Targeting:
    """A scorer that looks at the target; stands for a fitness."""

    target: LM


@dataclass(frozen=True, kw_only=True)
class Writing:
    """A scorer with a writer; stands for a mutator."""

    writer: LM


@dataclass(frozen=True, kw_only=True)
class Jury:
    """Several scorers and several models by name."""

    judges: Mapping[str, Scorer]
    models: Mapping[str, LM] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Points:
    def __post_init__(self) -> None:
        BUILT.append("points")

    def embed(self, texts: Sequence[str]) -> Any:
        raise AssertionError


NEAR = {"name": "near", "source": "path", "id": "folder"}
FAR = {"name": "far", "source": "served", "id": "far-1"}


def node(kind: str, **values: Any) -> dict[str, Any]:
    return {"_target_": f"{ME}.{kind}", **values}


def config(tmp_path: Path | None = None, **changes: Any) -> dict[str, Any]:
    return {
        "engine": node("Local"),
        "api": node("Remote", deadline=5.0),
        "target": NEAR,
        "writer": FAR,
        "judge_model": {**FAR, "name": "referee", "id": "far-2"},
        "safety": node("Judging"),
        "refusal": node("Targeting"),
        "mutator": node("Writing"),
        "cache": str(tmp_path / "lm.sqlite") if tmp_path else None,
        **changes,
    }
