"""A small run whose models are all behind the scripted server, composed as Hydra would, without Hydra's run."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from server import Server

import evorefuse.run  # noqa: F401  (registers the resolvers that conf/ uses)

CONF = Path(__file__).parent.parent / "conf"
PARTS = {
    "target": ("target", "alpha"),
    "target@writer": ("writer", "beta"),
    "target@judge_model": ("judge_model", "gamma"),
}


def composed(folder: Path, *overrides: str) -> dict[str, Any]:
    """The plain configuration under these overrides; the run is in ``folder``/run, the cache in ``folder``."""
    fixed = [f"run_dir={folder / 'run'}", f"outputs={folder}", "tracker=files"]
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        config = compose("config", overrides=[*fixed, *overrides])
    return cast(dict[str, Any], OmegaConf.to_container(config, resolve=True))


def models(url: str, *, price: str = "{read: 2.5, written: 10.0}") -> tuple[str, ...]:
    """Three models behind one server, one a role."""
    found: list[str] = []
    for group, (key, name) in PARTS.items():
        values = {"id": name, "name": name, "base_url": url, "price": price}
        found += [f"{group}=served", *(f"{key}.{own}={value}" for own, value in values.items())]
    return tuple(found)


SMALL = (
    "+experiment=smoke", "stages=[generate,benchmark]", "seeds.sample=2", "generate.schedule.steps=1", "mutator=llm",
    "mutator.strategies=[anger,disgust]", "scorer@safety=llm_safety", "control.strategies=[neutral_1]",
    "fitness.sampling.samples=1", "benchmark.sampling.samples=1", "benchmark.sets.controls.sample=3",
)  # fmt: skip


@contextmanager
def served(**server: Any) -> Iterator[tuple[Server, tuple[str, ...]]]:
    """The scripted server, and the overrides of a small run against it."""
    with Server(**server) as running:
        yield running, (*SMALL, *models(running.url))
