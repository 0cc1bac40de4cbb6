"""Which texts say the same as another: equal but for marks and case, the same words, or the same meaning. Pure."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from datasketch import MinHash, MinHashLSH
from numpy.typing import NDArray

Cause = Literal["exact", "minhash", "embedding"]
_SPACELESS = "぀-ヿ㐀-鿿豈-﫿"  # kana and Han are written without spaces: each sign is a word
_WORD = re.compile(rf"[{_SPACELESS}]|[^\s{_SPACELESS}]+")
_MEANT = "#%&@"  # marks that carry meaning: C# is not C
_PERMUTATIONS = 128


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """When two texts are twins.

    ``jaccard`` is the least share of common word shingles (runs of ``shingle`` words), ``cosine`` the least
    similarity of their vectors. Above 1 either is switched off; equal texts are always twins.
    """

    jaccard: float = 0.75
    shingle: int = 2
    cosine: float = 0.85

    def __post_init__(self) -> None:
        """Refuse limits that mean nothing.

        Raises:
            ValueError: where a limit is not above 0, or a shingle has no word.
        """
        if self.jaccard <= 0 or self.cosine <= 0 or self.shingle < 1:
            raise ValueError(f"expected jaccard > 0, cosine > 0 and shingle >= 1, got {self}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Twin:
    """A text that is left out, and the one that stays in its place: an index into the texts, or into those given.

    ``similarity`` in [0, 1] is by the measure named in ``cause`` (1 for exact).
    """

    index: int
    of: int
    is_given: bool
    cause: Cause
    similarity: float


def twins(
    texts: Sequence[str],
    vectors: NDArray[np.float32],
    *,
    order: Sequence[int],
    limits: Limits,
    given: Sequence[str] = (),
    given_vectors: NDArray[np.float32] | None = None,
) -> list[Twin]:
    """Those of ``texts`` that repeat a ``given`` text or one that comes earlier in ``order``, with what they repeat.

    Each is compared with those that stay only, so no chain of small steps removes a text that is unlike all that is
    left: afterwards no two that stay are twins. MinHash finds the pairs to look at; the share itself is exact.

    Args:
        texts: the texts [N].
        vectors: their unit vectors [N, D].
        order: the indices of ``texts``, the worthiest first: of a group it is the one that stays.
        limits: when two are twins.
        given: texts that none may repeat, such as test sets [M].
        given_vectors: their unit vectors [M, D]; needed where there are any.

    Raises:
        ValueError: where the numbers of texts and vectors differ.
    """
    others = np.zeros((0, vectors.shape[-1]), dtype=np.float32) if given_vectors is None else given_vectors
    if len(texts) != len(vectors) or len(given) != len(others) or sorted(order) != list(range(len(texts))):
        raise ValueError(
            f"expected one vector and one place in order a text, got {len(texts)} texts, {len(vectors)} vectors, "
            f"{len(order)} places; {len(given)} given, {len(others)} vectors"
        )
    kept = _Kept(limits=limits)
    for text, vector in zip(given, others, strict=True):
        kept.add(text, vector)
    places: list[int] = list(range(len(given)))
    found: list[Twin] = []
    for index in order:
        match = kept.match(texts[index], vectors[index])
        if match is None:
            kept.add(texts[index], vectors[index])
            places.append(index)
            continue
        at, cause, similarity = match
        is_given = at < len(given)
        found.append(Twin(index=index, of=places[at], is_given=is_given, cause=cause, similarity=similarity))
    return found


def plain(text: str) -> str:
    """The words of a text, folded and joined by single spaces; the text itself where it has none (an emoji)."""
    folded = unicodedata.normalize("NFKC", text).casefold()
    kept = "".join(_letter(char) for char in folded)
    return " ".join(_WORD.findall(kept)) or text.strip()


def shingles(text: str, *, size: int) -> frozenset[str]:
    """The runs of ``size`` words in a text; all its words as one where it has fewer."""
    words = plain(text).split(" ")
    return frozenset(" ".join(words[i : i + size]) for i in range(max(1, len(words) - size + 1)))


def jaccard(first: frozenset[str], second: frozenset[str]) -> float:
    """The share of common members in [0, 1]; 0 for two empty sets."""
    union = len(first | second)
    return len(first & second) / union if union else 0.0


def _letter(char: str) -> str:
    """What a character is in a plain text: itself, nothing (an apostrophe, an invisible one) or a space."""
    if char in "'’‘ʼ`" or unicodedata.category(char) == "Cf":
        return ""
    return " " if unicodedata.category(char)[0] in "PZC" and char not in _MEANT else char


class _Kept:
    """The texts that stay, found again by their words and by their meaning."""

    def __init__(self, *, limits: Limits) -> None:
        self._limits = limits
        self._plain: dict[str, int] = {}
        self._shingles: list[frozenset[str]] = []
        self._vectors: list[NDArray[np.float32]] = []
        self._index = MinHashLSH(num_perm=_PERMUTATIONS, params=_bands(min(limits.jaccard, 1.0)))

    def add(self, text: str, vector: NDArray[np.float32]) -> None:
        place = len(self._vectors)
        own = shingles(text, size=self._limits.shingle)
        self._plain.setdefault(plain(text), place)
        self._shingles.append(own)
        self._vectors.append(vector)
        self._index.insert(str(place), _sketch(own))

    def match(self, text: str, vector: NDArray[np.float32]) -> tuple[int, Cause, float] | None:
        """The place of the closest twin, by the first measure that finds one."""
        if (place := self._plain.get(plain(text))) is not None:
            return place, "exact", 1.0
        own = shingles(text, size=self._limits.shingle)
        shares = [(jaccard(own, self._shingles[at]), -at) for at in self._near(own)]
        if shares and max(shares)[0] >= self._limits.jaccard:
            share, at = max(shares)
            return -at, "minhash", share
        if self._vectors:
            cosines = np.stack(self._vectors) @ vector
            at = int(cosines.argmax())
            if cosines[at] >= self._limits.cosine:
                return at, "embedding", min(1.0, float(cosines[at]))
        return None

    def _near(self, members: frozenset[str]) -> list[int]:
        return sorted(int(str(key)) for key in self._index.query(_sketch(members)))


def _bands(threshold: float) -> tuple[int, int]:
    """Bands and rows of the index: the fewest candidates at which a pair at ``threshold`` is missed once in a million.

    Candidates are checked afterwards, so only a miss would harm. A pair that shares s of its shingles is one with
    probability 1 - (1 - s^rows)^bands.
    """
    for rows in range(8, 1, -1):
        bands = _PERMUTATIONS // rows
        if (1 - threshold**rows) ** bands < 1e-6:
            return bands, rows
    return _PERMUTATIONS, 1


def _sketch(members: frozenset[str]) -> MinHash:
    sketch = MinHash(num_perm=_PERMUTATIONS, seed=1)
    sketch.update_batch([member.encode("utf-8", "replace") for member in sorted(members)])
    return sketch
