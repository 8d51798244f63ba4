"""Continued pre-training: a folder of texts goes in whole, and comes out as a model that finds such texts likelier."""

import json
from pathlib import Path

import numpy as np
import pytest

import tunesmith
from tunesmith.base import ConfigError, Run
from tunesmith.base.files import read_json
from tunesmith.base.spec import validate
from tunesmith.data.example import Row, Sequence
from tunesmith.data.fitting import windows
from tunesmith.data.prepared import load_examples, load_split
from tunesmith.data.sources.text import Text
from tunesmith.stages.prepare import STAGE, Prepare, input_files


def run(folder: Path, **fields):
    spec = validate(Prepare, {"test_fraction": 0, "validation_fraction": 0, **fields}, "recipe.yaml")
    return Run(folder / "run").once(STAGE, spec, inputs=input_files(spec), tokenizer_name="smollm2-135m", seed=0)


@pytest.mark.parametrize(
    ("length", "longest", "overlap"), [(8, 8, 1), (9, 8, 1), (30, 8, 1), (30, 8, 4), (31, 9, 3), (15, 8, 1)]
)
def test_windows_learn_every_token_once_and_behind_what_came_before(length, longest, overlap):
    tokens = np.arange(length, dtype=np.int32)
    found = windows(Row("a.md:1", (Sequence(tokens, tokens > 0),)), longest, overlap)
    learnt = [sequence.tokens[sequence.learn].tolist() for row in found for sequence in row.sequences]
    assert [token for part in learnt for token in part] == list(range(1, length))
    assert all(learnt)
    for number, row in enumerate(found):
        (sequence,) = row.sequences
        assert len(sequence) <= longest
        assert np.array_equal(sequence.tokens, tokens[sequence.tokens[0] : sequence.tokens[0] + len(sequence)])
        assert int(np.argmax(sequence.learn)) == (overlap if number else 1)


def test_nothing_of_a_long_text_is_lost(tmp_path, smollm_tokenizer):
    """Texts of different lengths, one far longer than max_tokens, with letters of several bytes at the seams."""
    texts = [
        " ".join(f"Nummer {n} für {name}: ÄÖÜ€." for n in range(40 * size)) for size, name in enumerate(("b", "c"), 1)
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in [*texts, "Short."]))
    artifact = run(tmp_path, source=str(tmp_path / "t.jsonl"), max_tokens=64, overlap=8, cleaners=[])
    rows, examples = load_split(artifact.path, "train"), load_examples(artifact.path, "train")
    assert len(rows) == len(examples) > 20
    assert artifact.metrics["truncated"] == 0
    assert read_json(artifact.path / "summary.json")["counts"]["used"] == 3
    for line, text in enumerate([*texts, "Short."], start=1):
        mine = [row.sequences[0] for row in rows if row.origin.endswith(f":{line}")]
        whole = [*smollm_tokenizer(text).input_ids, smollm_tokenizer.eos_token_id]
        learnt = [token for sequence in mine for token in sequence.tokens[sequence.learn].tolist()]
        assert [whole[0], *learnt] == whole
    for row, example in zip(rows, examples, strict=True):
        assert example.origin == row.origin
        assert example.text.strip("\ufffd")[:20] in "".join([*texts, "Short."])


def test_paragraphs_are_joined_up_to_so_many_characters(tmp_path):
    path = tmp_path / "a.md"
    path.write_text("# One\n\naaaa\nbbbb\n\n\n\ncccc\n\n" + "d" * 50 + "\n\nlast\n")
    read = lambda join: [(record.origin, record.value["text"]) for record in Text(join=join).records(path)]  # noqa: E731
    assert [text for _, text in read(0)] == ["# One", "aaaa\nbbbb", "cccc", "d" * 50, "last"]
    assert read(22) == [
        (f"{path}:1", "# One\n\naaaa\nbbbb\n\ncccc"), (f"{path}:10", "d" * 50), (f"{path}:12", "last"),
    ]  # fmt: skip
    assert read(21)[0] == (f"{path}:1", "# One\n\naaaa\nbbbb")
    assert len(read(1000)) == 1
    path.write_text("one\ntwo\nthree\n")
    assert read(7) == [(f"{path}:1", "one\ntwo"), (f"{path}:3", "three")]


def test_an_overlap_that_leaves_little_is_refused():
    with pytest.raises(ConfigError, match="overlap 40 is more than half of max_tokens"):
        validate(Prepare, {"source": "a", "max_tokens": 64, "overlap": 40}, "recipe.yaml")


def test_a_folder_of_texts_becomes_a_model_of_such_texts(tiny_folder, tmp_path):
    (tmp_path / "notes").mkdir()
    for number in range(8):
        lines = "\n\n".join(
            f"# Log {number}\n\nThe pump {part} of plant {number} ran dry at noon." for part in range(9)
        )
        (tmp_path / "notes" / f"note-{number}.md").write_text(lines)
    recipe = {
        "model": str(tiny_folder),
        "precision": "fp32",
        "prepare": {"source": "notes", "join": 400, "max_tokens": 48, "overlap": 8, "test_fraction": 0.2, "validation_fraction": 1, "cleaners": []},
        "initialise": {"adapter": {"kind": "full"}},
        "finetune": {"epochs": 2, "optimizer": {"learning_rate": 0.02}},
        "evaluate": {"graders": [{"kind": "perplexity"}], "max_tokens": 4},
        "deploy": {"ungated": True},
    }  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    folder = tunesmith.run(tmp_path / "recipe.yaml", folder=tmp_path / "run")
    results = read_json(Run(folder).artifact("evaluate") / "results.json")
    board = results["task"]["graders"]["perplexity"]
    apart = board["differences"]["tuned - base"]["relative"]
    assert apart["low"] < apart["value"] < apart["high"] < -50
    assert results["general"]["graders"]["perplexity"]["differences"].keys() == {"tuned - base"}
    assert set(results["notes"].values()) == {"likelihoods of plain text; nothing was asked"}
    proof = read_json(Run(folder).artifact("deploy") / "proof.json")
    (said,) = (claim for claim in proof["claims"] if claim["claim"].startswith("greedy answers"))
    assert said["equal"] == said["prompts"] > 0
    with pytest.raises(
        ConfigError, match=r"evaluate.graders: exact judges answers, and plain text asks for none"
    ) as caught:
        tunesmith.initialise(tmp_path / "recipe.yaml", "evaluate.graders=[{kind: exact}]", folder=tmp_path / "other")
    assert "\n" not in str(caught.value)
