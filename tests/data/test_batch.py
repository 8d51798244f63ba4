import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from tunesmith.data.batch import Batch, common_prefix, grow
from tunesmith.data.example import Row, Sequence
from tunesmith.data.rows_file import load_rows, save_rows

tokens = st.lists(
    st.integers(0, 2), min_size=1, max_size=12
)  # three words make shared prefixes, and equal rows, common


@st.composite
def sequences(draw):
    """A token sequence and which of its tokens are supervised."""
    words = np.array(draw(tokens), dtype=np.int32)
    learn = np.array(draw(st.lists(st.booleans(), min_size=len(words), max_size=len(words))))
    learn[0] = False
    return Sequence(words, learn)


rows = st.lists(st.lists(sequences(), min_size=1, max_size=3), min_size=1, max_size=5).map(
    lambda drawn: [
        Row(f"f.jsonl:{number + 1}", tuple(parts), {"label": number / 4, "reward": -1.5})
        for number, parts in enumerate(drawn)
    ]
)


@settings(max_examples=150)
@given(st.lists(tokens, min_size=1, max_size=8))
def test_every_distinct_prefix_stands_once(drawn):
    forest = grow([np.array(words, dtype=np.int32) for words in drawn])
    trie = {tuple(words[: end + 1]) for words in drawn for end in range(len(words))}
    assert len(forest.tokens_N) == len(trie)
    seen = {}
    for number, words in enumerate(drawn):
        nodes = forest.nodes(number).tolist()
        assert forest.tokens_N[nodes].tolist() == words
        assert forest.depth_N[nodes].tolist() == list(range(len(words)))
        for end, node in enumerate(nodes):  # a node is one prefix, whichever sequence comes by
            assert seen.setdefault(node, tuple(words[: end + 1])) == tuple(words[: end + 1])


@settings(max_examples=100)
@given(st.lists(tokens, min_size=1, max_size=8))
def test_own_nodes_follow_one_another(drawn):
    """What the attention kernel and its scatter rely on."""
    forest = grow([np.array(words) for words in drawn])
    at = 0
    for number, segment in enumerate(forest.segments):
        assert segment.start == at
        assert forest.nodes(number)[len(forest.nodes(number)) - (segment.stop - segment.start) :].tolist() == list(
            range(segment.start, segment.stop)
        )
        assert all(start < stop for start, stop in segment.path)
        at = segment.stop
    assert at == len(forest.tokens_N)


@settings(max_examples=100)
@given(rows)
def test_a_batch_predicts_each_supervised_token_from_those_before_it(drawn):
    if not any(row.supervised for row in drawn):
        return
    batch = Batch.of(drawn)
    expected = [
        (number, tuple(sequence.tokens[:place].tolist()), int(sequence.tokens[place]))
        for number, sequence in enumerate(sequence for row in drawn for sequence in row.sequences)
        for place in np.flatnonzero(sequence.learn)
    ]
    found = []
    for source, target, owner in zip(batch.source_M, batch.target_M, batch.sequence_M, strict=True):
        nodes = batch.forest.nodes(int(owner))
        until = nodes[: nodes.tolist().index(int(source)) + 1]
        found.append((int(owner), tuple(batch.forest.tokens_N[until].tolist()), int(target)))
    assert found == expected
    assert batch.supervised == sum(row.supervised for row in drawn)
    assert batch.tokens == sum(len(sequence) for row in drawn for sequence in row.sequences)
    assert batch.row_S.tolist() == [number for number, row in enumerate(drawn) for _ in row.sequences]
    assert batch.origins == tuple(row.origin for row in drawn)
    assert batch.columns["label"].tolist() == [number / 4 for number in range(len(drawn))]


@settings(max_examples=50)
@given(rows)
def test_rows_survive_the_disk(tmp_path_factory, drawn):
    path = tmp_path_factory.mktemp("rows") / "train.safetensors"
    save_rows(path, drawn)
    loaded = load_rows(path)
    assert len(loaded) == len(drawn)
    for left, right in zip(loaded, drawn, strict=True):
        assert (left.origin, dict(left.columns)) == (right.origin, dict(right.columns))
        for one, other in zip(left.sequences, right.sequences, strict=True):
            assert np.array_equal(one.tokens, other.tokens)
            assert np.array_equal(one.learn, other.learn)
            assert one.learn.dtype == bool


def test_no_rows_survive_the_disk(tmp_path):
    save_rows(tmp_path / "none.safetensors", [])
    assert load_rows(tmp_path / "none.safetensors") == []


@pytest.mark.parametrize(
    ("left", "right", "common"), [([1, 2], [1, 2, 3], 2), ([1], [2], 0), ([], [1], 0), ([1, 2, 3], [1, 5, 3], 1)]
)
def test_common_prefix(left, right, common):
    assert common_prefix(np.array(left), np.array(right)) == common


def test_a_prompt_shared_by_a_preference_pair_stands_once():
    prompt, learn = [5, 6, 7], [False] * 3
    pair = tuple(Sequence(np.array([*prompt, word, 9]), np.array([*learn, True, True])) for word in (1, 2))
    batch = Batch.of([Row("a:1", pair)])
    assert batch.forest.tokens_N.tolist() == [5, 6, 7, 1, 9, 2, 9]
    assert batch.source_M.tolist() == [2, 3, 2, 5]
    assert batch.target_M.dtype == torch.int64


def test_a_file_written_row_by_row_is_one_that_safetensors_writes(tmp_path, random_rows):
    drawn = random_rows(5, answers=2, reward=0.5)
    save_rows(tmp_path / "ours.safetensors", drawn)
    sequences = [sequence for row in drawn for sequence in row.sequences]
    tensors = {
        "tokens": np.concatenate([sequence.tokens for sequence in sequences]),
        "learn": np.concatenate([sequence.learn.astype(np.uint8) for sequence in sequences]),
        "lengths": np.array([len(sequence) for sequence in sequences], dtype=np.int32),
        "sequences": np.full(5, 2, dtype=np.int32),
    }
    save_file(tensors, tmp_path / "theirs.safetensors")
    assert (tmp_path / "ours.safetensors").read_bytes() == (tmp_path / "theirs.safetensors").read_bytes()
