"""The throughput stage, on a tiny model: it runs, and its arithmetic is right. No test depends on the time it takes."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny import engine, save_model
from transformers import AutoModelForCausalLM, LlamaConfig

from evorefuse.lm.decode import Scheme
from evorefuse.progress import Progress
from evorefuse.stages import throughput
from evorefuse.stages.throughput import Settings
from evorefuse.store import Store, read_json

SMALL = Settings(
    candidates=2, samples=2, max_tokens=3, repeats=1, gemm_size=32, copy_mib=1, dtypes=("float32",), fraction=0.5
)


class Recorder:
    """A tracker that keeps what is logged."""

    def __init__(self) -> None:
        self.logged: dict[str, Any] = {}

    def log(self, namespace: str, values: dict[str, float], *, step: int | None = None) -> None:
        assert step is None
        self.logged |= {f"{namespace}/{key}": value for key, value in values.items()}


def test_it_measures_both_ways_and_writes_the_figures(tmp_path: Path) -> None:
    target = engine(save_model(tmp_path / "model", "llama_gqa"))
    tracker = Recorder()
    store = Store(tmp_path / "out")
    summary = throughput.run(
        cfg=SMALL,
        seed=1,
        target=target,
        store=store,
        tracker=tracker,
        progress=Progress(quiet=True),  # pyright: ignore
    )
    figures = read_json(tmp_path / "out" / "throughput.json")["figures"]
    store.close()
    assert [one["model"] for one in figures] == ["tiny", "tiny_shape"]
    assert [one["engine_tokens"] for one in figures] == [12, 12]
    assert figures[0]["baseline_tokens"] == 24
    assert figures[0]["baseline_fraction"] == 0.5
    assert "50% of the baseline" in summary.notes[1]
    ratio = summary.metrics["tiny_float32/ratio"]
    assert ratio.n == 4
    assert ratio.value == pytest.approx(figures[0]["ratio"])
    assert ratio.value > 0
    assert tracker.logged["throughput/tiny_float32/ratio"] == ratio.value


def test_the_baseline_does_the_work_of_the_released_script(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model = engine(save_model(tmp_path, "llama_gqa")).model
    lengths: list[int] = []
    real = model.generate
    monkeypatch.setattr(model, "generate", lambda *a, **k: lengths.append((out := real(*a, **k)).shape[1]) or out)
    throughput._one_by_one(model, [1, 6, 7], cfg=Settings(max_tokens=9, scheme=Scheme(top_k=5)), seed=0)
    assert lengths == [12, 12], "two generations, neither stopped early"


@pytest.mark.parametrize("tied", [True, False])
def test_the_work_is_counted_by_the_parameters(tied: bool) -> None:
    config = LlamaConfig(
        hidden_size=8, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
        vocab_size=20, tie_word_embeddings=tied,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    body = 8 * 8 + 2 * 8 * 4 + 8 * 8 + 3 * 8 * 16 + 3 * 8
    flop, moved = throughput.work(model, [[1, 2, 3]], [0, 0], 3)
    attended = 6 + 2 * (4 + 5)
    assert flop == 2 * body * (3 + 2 * 2) + 2 * 160 * (1 + 2 * 2) + 4 * 8 * attended
    assert moved == 4 * ((body + 160) * 3 + 2 * 4 * 2 * (4 + 5))


@pytest.mark.parametrize("wrong", [{"fraction": 0.0}, {"candidates": 9}])
def test_a_setting_out_of_range_is_refused(tmp_path: Path, wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected 0 < fraction"):
        throughput.run(
            cfg=Settings(**wrong),
            seed=1,
            target=None,
            store=None,
            tracker=None,
            progress=None,  # pyright: ignore
        )
