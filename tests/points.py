"""An embedder for tests: closeness is the share of common words, so the truth can be counted by hand."""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from evorefuse.records import derive

SIZE = 512


class Words:
    """A unit vector a text: one axis a word (by its hash). Remembers what it embedded."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        self.seen += texts
        vectors = np.zeros((len(texts), SIZE), dtype=np.float32)
        for row, text in zip(vectors, texts, strict=True):
            for word in re.findall(r"\w+", text.casefold()) or [text]:
                row[derive("axis", word) % SIZE] = 1
        return vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
