"""Texts to vectors with nothing to fetch: two embedders that are fitted to a corpus, and one from a folder."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import sparse
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.utils.extmath import randomized_svd

PASSAGE = 64  # words in the pieces of the corpus that embedders are fitted to
PASSAGES = 16_000  # at most, evenly spread
WORDS = re.compile(r"\w+(?:['\u2019]\w+)*")


class Embedder(Protocol):
    """Texts to (N, E) vectors of length 1; of length 0 where a text holds nothing that it knows."""

    name: str

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float64]: ...


def words(text: str) -> list[str]:
    return WORDS.findall(text.lower())


def passages(corpus: Iterable[str]) -> list[list[str]]:
    """The words of a corpus in pieces. ValueError when there are fewer than 20."""
    found = []
    for text in corpus:
        row = words(text)
        found += [row[i : i + PASSAGE] for i in range(0, len(row), PASSAGE)]
    found = [row for row in found if len(row) > 1]
    if len(found) < 20:
        raise ValueError(
            f"the reference corpus holds {len(found)} passages of up to {PASSAGE} words; expected at least 20 to fit "
            "embedders to"
        )
    return [found[i * len(found) // PASSAGES] for i in range(PASSAGES)] if len(found) > PASSAGES else found


def unit(vectors: NDArray) -> NDArray[np.float64]:
    """Rows of length 1; those of length 0 stay."""
    vectors = np.asarray(vectors, dtype=np.float64)
    size = np.linalg.norm(vectors, axis=1, keepdims=True)
    return np.divide(vectors, size, out=np.zeros_like(vectors), where=size > 1e-12)


class Tfidf:
    """Latent semantic analysis: TF-IDF, and the first directions of its singular value decomposition."""

    name = "tfidf"

    def __init__(self, corpus: Sequence[Sequence[str]], size: int = 128, vocabulary: int = 20_000):
        """`corpus`: passages, as `passages` gives them."""
        split: Any = list  # passages and texts come as words already
        least = 2 if len(corpus) > 100 else 1
        options = {"min_df": least, "max_df": 0.5, "max_features": vocabulary}
        self.vectorizer = TfidfVectorizer(analyzer=split, sublinear_tf=True, **options)
        matrix = sparse.csr_matrix(self.vectorizer.fit_transform(corpus))
        size = bounded(size, len(corpus), len(self.vectorizer.vocabulary_))
        self.directions = randomized_svd(matrix, size, random_state=0)[2].T

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float64]:
        if not texts:
            return np.zeros((0, self.directions.shape[1]))
        return unit(self.vectorizer.transform([words(text) for text in texts]) @ self.directions)


class Ppmi:
    """The mean of word vectors: positive pointwise mutual information of words that stand near each other, by SVD.

    With contexts smoothed by the power 0.75 and vectors U S^0.5 (Levy, Goldberg and Dagan, 2015). Vectors are moved
    so that their mean over the running corpus is 0: else the common words would make all texts alike.
    """

    name = "ppmi"

    def __init__(
        self,
        corpus: Sequence[Sequence[str]],
        size: int = 128,
        vocabulary: int = 10_000,
        window: int = 4,
        least: int = 3,
    ):
        counts: dict[str, int] = {}
        for row in corpus:
            for word in row:
                counts[word] = counts.get(word, 0) + 1
        often = sorted((word for word in counts if counts[word] >= least), key=lambda word: (-counts[word], word))
        self.known = {word: i for i, word in enumerate(often[:vocabulary])}
        if len(self.known) < 20:
            raise ValueError(f"the reference corpus holds {len(self.known)} words that come {least} times; expected 20")
        matrix = information(near(corpus, self.known, window))
        left, scale, _ = randomized_svd(matrix, bounded(size, len(self.known), len(self.known)), random_state=0)
        vectors = left * np.sqrt(scale)
        share = np.array([counts[word] for word in self.known], dtype=float)
        self.vectors = vectors - (share / share.sum()) @ vectors

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float64]:
        found = np.zeros((len(texts), self.vectors.shape[1]))
        for i, text in enumerate(texts):
            ids = [self.known[word] for word in words(text) if word in self.known]
            if ids:
                found[i] = self.vectors[ids].mean(0)
        return unit(found)


def near(corpus: Sequence[Sequence[str]], known: dict[str, int], window: int) -> sparse.csr_matrix:
    """(V, V) how often two words stand at most `window` words apart in a passage."""
    rows = [np.array([known.get(word, -1) for word in row]) for row in corpus]
    ids = np.concatenate([np.append(row, [-1] * window) for row in rows])  # passages do not touch
    size, total = len(known), sparse.csr_matrix((len(known), len(known)))
    for apart in range(1, window + 1):
        left, right = ids[:-apart], ids[apart:]
        both = (left >= 0) & (right >= 0)
        ones = np.ones(int(both.sum()))
        total = total + sparse.csr_matrix((ones, (left[both], right[both])), shape=(size, size))
    return sparse.csr_matrix(total + total.T)


def information(counts: sparse.csr_matrix, power: float = 0.75) -> sparse.csr_matrix:
    """Positive pointwise mutual information max(0, ln p(w, c) / (p(w) p(c))), contexts smoothed by `power`."""
    cells = counts.tocoo()
    word = np.asarray(counts.sum(1)).ravel()
    context = np.asarray(counts.sum(0)).ravel() ** power
    values = np.log(cells.data * context.sum() / (word[cells.row] * context[cells.col]))
    found = sparse.csr_matrix((np.maximum(values, 0), (cells.row, cells.col)), shape=counts.shape)
    found.eliminate_zeros()
    return found


class Sentences:
    """A model of the sentence-transformers library, from a folder on disk."""

    def __init__(self, folder: str):
        """ValueError when the library is not installed, or the folder is none of its models."""
        if not (Path(folder) / "modules.json").is_file():
            raise ValueError(f"{folder} is not the folder of a sentence-transformers model: it has no modules.json")
        try:
            library: Any = import_module("sentence_transformers")
        except ImportError as error:
            raise ValueError(
                f"embedding with {folder} needs sentence-transformers: pip install sentence-transformers"
            ) from error
        self.name = Path(folder).name
        self.model = library.SentenceTransformer(folder, device="cpu")

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float64]:
        if not texts:
            return np.zeros((0, 1))
        return unit(self.model.encode(list(texts), show_progress_bar=False, convert_to_numpy=True))


def bounded(size: int, rows: int, columns: int) -> int:
    """So many directions, or as many as a matrix can have."""
    return max(1, min(size, rows - 1, columns - 1))


def fitted(corpus: Iterable[str], folders: Sequence[str] = ()) -> list[Embedder]:
    """The two that are fitted to this corpus, and those from folders."""
    loaded: list[Embedder] = [Sentences(folder) for folder in folders]
    found = passages(corpus)
    return [Tfidf(found), Ppmi(found), *loaded]
