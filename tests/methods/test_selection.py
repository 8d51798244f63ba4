"""Each way to choose rows is what it says, against a slow and obvious version; sizes are exact, and the seed decides."""

import sys
from collections import Counter

import numpy as np
import pytest
import torch

from tunesmith.base import DataError, MachineError
from tunesmith.data.batch import Batch
from tunesmith.data.corpus import gathered
from tunesmith.data.example import Example
from tunesmith.data.likeness import Sets
from tunesmith.data.render import Renderer
from tunesmith.data.retrieval.embedding import Embedding
from tunesmith.data.wording import jaccard
from tunesmith.methods.selection import Pool, Selector
from tunesmith.methods.selection.difficulty import Difficulty
from tunesmith.methods.selection.distinct import Distinct
from tunesmith.methods.selection.diversity import Diversity, k_center
from tunesmith.methods.selection.random import Random
from tunesmith.methods.selection.stratified import Stratified
from tunesmith.models.attention import plain
from tunesmith.models.difficulty import difficulties
from tunesmith.models.forward import error_norms
from tunesmith.models.load import load

COUNT = 60


def asked(number: int) -> str:
    """Every fifth question is the one before it, with a word changed."""
    words = np.random.default_rng(number - (number % 5 == 4)).permutation(200)[:20]
    return " ".join(f"word{word}" for word in words) + (" again" if number % 5 == 4 else "")


@pytest.fixture(scope="module")
def pool(tiny_folder, short_tokenizer) -> Pool:
    colours = ["red"] * 7 + ["green"] * 2 + ["blue"]
    examples = [
        Example(
            f"t:{number + 1}",
            ({"role": "user", "content": asked(number)},),
            (({"role": "assistant", "content": " ".join([colours[number % 10]] * (1 + number % 3))},),),
            meta={"colour": colours[number % 10]},
        )
        for number in range(COUNT)
    ]
    renderer = Renderer(short_tokenizer)
    view = gathered({"train": examples})["train"]
    return Pool(view, tuple(renderer.row(example) for example in examples), str(tiny_folder))


def made(member: type[Selector], **settings) -> Selector:
    special = {Diversity: {"embedding": "svd"}, Stratified: {"by": "colour"}}
    return member(**special.get(member, {}), **settings)


@pytest.mark.parametrize("member", Selector.members(), ids=lambda member: member.model_fields["kind"].default)
class TestEverySelector:
    @pytest.mark.parametrize("count", [1, 44])
    def test_as_many_as_are_wanted_none_twice_told_by_the_seed(self, member, count, pool):
        first, again, other = (made(member).choose(pool, count, seed).places for seed in (3, 3, 4))
        assert first.tolist() == again.tolist()
        assert len(set(first.tolist())) == len(first) == count
        assert set(first.tolist()) <= set(range(COUNT))
        assert (sorted(first) != sorted(other)) == (member is not Difficulty) or count == 1


@pytest.mark.parametrize(
    ("size", "there", "expected"), [(0.5, 9, 4), (0.01, 9, 1), (1, 9, 1), (9, 9, 9), (0.25, 1000, 250)]
)
def test_sizes_are_fractions_or_counts(size, there, expected):
    assert Random(size=size).count(there) == expected


def test_more_than_there_are_is_refused():
    with pytest.raises(
        DataError, match=r"10 rows are wanted, and there are 9 to learn from; lower prepare\.select\.size"
    ):
        Random(size=10).count(9)


def test_a_smaller_random_choice_is_part_of_a_larger_one(pool):
    small, large = (set(Random().choose(pool, count, 0).places.tolist()) for count in (10, 30))
    assert small < large


@pytest.mark.parametrize("count", [10, 20, 33])
def test_strata_keep_their_proportions(pool, count):
    """42 red, 12 green and 6 blue rows: each within one of its share, and exact where shares are whole."""
    places = Stratified(by="colour").choose(pool, count, 0).places
    found = Counter(pool.examples[int(place)].meta["colour"] for place in places)
    for colour, share in {"red": 0.7, "green": 0.2, "blue": 0.1}.items():
        assert abs(found[colour] - share * count) < 1
    with pytest.raises(DataError, match="has no field 'shade'"):
        Stratified(by="shade").choose(pool, count, 0)
    with pytest.raises(DataError, match=r"no row's answer has 'answer\.role'"):
        Stratified(by="answer.role").choose(pool, count, 0)


def test_k_center_takes_the_farthest_each_time():
    vectors = np.random.default_rng(0).normal(size=(40, 3))
    vectors[7] = vectors[30]  # equals are taken last
    chosen = [5]
    while len(chosen) < 40:
        left = [place for place in range(40) if place not in chosen]
        apart = [min(np.linalg.norm(vectors[place] - vectors[other]) for other in chosen) for place in left]
        chosen.append(left[int(np.argmax(apart))])
    for count in (1, 2, 12, 40):
        places, radius = k_center(vectors, count, 5)
        assert places.tolist() == chosen[:count]
        apart = [
            min(np.linalg.norm(vectors[place] - vectors[other]) for other in chosen[:count]) for place in range(40)
        ]
        assert radius == pytest.approx(max(apart), abs=1e-7)


def test_diverse_rows_are_farther_apart_than_random_ones_and_the_embedding_is_named(pool):
    found = Diversity(embedding="svd").choose(pool, 20, 0)
    vectors = Embedding(model="svd").index([str(example.prompt[0]["content"]) for example in pool.examples]).vectors_ND

    def nearest(places) -> float:
        apart = np.linalg.norm(vectors[places][:, None] - vectors[places][None], axis=-1)
        return float((apart + 9 * np.eye(len(places))).min())

    assert nearest(found.places) > nearest(Random().choose(pool, 20, 0).places)
    assert found.facts["embedding"].startswith("TF-IDF")
    assert 0 < found.facts["farthest_row"] < 2


def test_without_scikit_learn_the_package_is_named(pool, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.feature_extraction.text", None)
    with pytest.raises(MachineError, match=r"'sklearn' is not installed; run: pip install .*\[eval\]"):
        Diversity(embedding="svd").choose(pool, 5, 0)


def slowly(loaded, row, measure: str) -> float:
    """One answer, through all logits of the plain model."""
    sequence = row.sequences[0]
    with torch.no_grad(), plain(loaded.model):
        logits = loaded.model(torch.from_numpy(sequence.tokens.astype(np.int64))[None]).logits[0].double()
    found = []
    for place in np.flatnonzero(sequence.learn):
        chance, token = logits[place - 1].softmax(-1), int(sequence.tokens[place])
        right = torch.nn.functional.one_hot(torch.tensor(token), len(chance))
        found.append(-float(chance[token].log()) if measure == "loss" else float((chance - right).norm()))
    return float(np.mean(found))


@pytest.mark.parametrize("measure", ["loss", "el2n"])
@pytest.mark.parametrize("kind", ["llama", "gemma2"])
def test_difficulties_are_those_of_one_answer_after_the_other(measure, kind, build, random_rows):
    loaded, two = build(kind, seed=2, spread=2.0, vocab_size=97), random_rows(11, answers=2)
    expected = [slowly(loaded, row, measure) for row in two]
    assert difficulties(loaded, two, measure) == pytest.approx(expected, rel=1e-4)
    assert np.ptp(expected) > 0.01


def test_errors_are_the_same_whether_logits_come_at_once_or_in_chunks(build, random_rows, monkeypatch):
    loaded, batch = build("llama", seed=2, spread=2.0, vocab_size=97), Batch.of(random_rows(7))
    whole = error_norms(loaded, batch)
    monkeypatch.setattr("tunesmith.models.forward.head.CHUNK", 3)
    torch.testing.assert_close(error_norms(loaded, batch), whole)


@pytest.mark.parametrize("measure", ["loss", "el2n"])
def test_the_hardest_middle_and_easiest_are_taken(measure, pool):
    score = difficulties(load(pool.model, "auto"), pool.rows, measure)
    order = np.argsort(-score, kind="stable")
    for take, expected in (("hardest", order[:15]), ("easiest", order[-15:]), ("middle", order[22:37])):
        found = Difficulty(measure=measure, take=take).choose(pool, 15, 0)
        assert sorted(found.places.tolist()) == sorted(expected.tolist())
        assert found.facts["mean_chosen"] == pytest.approx(score[expected].mean(), abs=1e-3)


def test_no_two_distinct_rows_are_nearly_the_same(pool):
    found = Distinct().choose(pool, 44, 1)
    assert found.facts["near_duplicates"] == 12
    sets = Sets(pool.examples).read(np.arange(COUNT))
    alike = [(one, other) for one in range(COUNT) for other in range(one) if jaccard(sets[one], sets[other]) >= 0.8]
    assert len(alike) == 12
    chosen = set(found.places.tolist())
    assert not any({one, other} <= chosen for one, other in alike)
    with pytest.raises(DataError, match=r"50 rows are wanted, and of 60 only 48 are no near duplicates"):
        Distinct().choose(pool, 50, 1)
