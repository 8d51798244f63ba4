"""What a showdown is asked for: what makes no sense is refused before anything is computed, and every run sees paths from its folder."""

import json
from pathlib import Path

import pytest
import yaml
from showdowns import write_showdown

from tunesmith.base import ConfigError, DataError
from tunesmith.stages.showdown import open_contest
from tunesmith.stages.showdown.settings import references

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def given(tmp_path_factory, tiny_folder) -> Path:
    return write_showdown(tmp_path_factory.mktemp("showdown"), tiny_folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("against=ppo", r"against: 'ppo' is no road; there are sft, dpo, grpo, rlhf"),
        ("roads.dpo.prepare.source=$later.rows", r"dpo: \$later.rows stands for nothing; before it there are start, pairs, judge, sft"),
        ("roads.dpo.prepare.source=$pairs.row", r"\$pairs.row stands for nothing"),
        ("steps.judge.prepare.source=rows.jsonl roads.dpo.prepare.source=rows.jsonl", r"no road uses the step pairs"),
        ("roads.sft.finetune.epochs=2", r"sft: finetune.epochs follows from the budget"),
        ("roads.sft.evaluate.max_tokens=2", r"sft: all roads are measured alike"),
        ("roads.sft.finetune.rollouts={rewards: [{grader: {kind: exact}}]}", r"sft: finetune: objective sft learns from given answers"),
        ("base.prepare.test=null", r"base.prepare.test is missing"),
        ("base.prepare=null", r"base.prepare.test is missing"),
        ("roads.sft.finetune=null", r"sft: finetune: input should be a valid dictionary"),
        ("roads.pairs={}", r"'pairs' cannot name a run"),
        ("roads.Dpo={}", r"'Dpo' cannot name a run"),
        ("roads.sft.finetune.objective.kind=sfd", r"sft: finetune.objective.kind: 'sfd' does not exist"),
        ("roads.sft.prune={method: {kind: magnitude}}", r"sft: prune: what pruning spends is no part of the budget"),
        ("base.prune={method: {kind: magnitude}}", r"pairs: prune: what pruning spends is no part of the budget"),
        ("base.evaluate.graders=[{kind: perplexity}]", r"base.evaluate.graders: perplexity: roads are compared by what they answer"),
        ("rodes={}", r"rodes: no such field; did you mean 'roads'"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused_before_anything_is_computed(given, tmp_path, settings, message):
    with pytest.raises(ConfigError, match=message):
        open_contest(given, tmp_path / "r", tuple(settings.split(" ")) if settings.startswith("steps") else (settings,))


def test_paths_of_every_run_are_seen_from_the_folder_and_kinds_that_are_left_out_are_defaults(
    given, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    tree = yaml.safe_load(given.read_text())
    tree["roads"]["sft"] = {
        "prepare": {"source": "more.jsonl"},
        "initialise": {"adapter": {"kind": "lora", "alpha": 3}},
    }
    tree["steps"]["pairs"]["prepare"] = {"source": ["train.jsonl"]}
    (given.parent / "more.yaml").write_text(yaml.safe_dump(tree, sort_keys=False))
    spec = open_contest(given.parent / "more.yaml", tmp_path / "r", ("roads.grpo.prepare.source=here.jsonl",)).spec
    found = {name: spec.recipe(name, lambda *product: "/".join(product)) for name in spec.changes}
    assert {name: recipe.prepare.source for name, recipe in found.items()} == {
        "start": str(given.parent / "train.jsonl"), "pairs": (str(given.parent / "train.jsonl"),), "sft": str(given.parent / "more.jsonl"),
        "judge": "pairs/rows", "dpo": "pairs/rows", "grpo": str(tmp_path / "here.jsonl"), "rlhf": str(given.parent / "train.jsonl"),
    }  # fmt: skip
    adapter = found["sft"].initialise.adapter
    assert (adapter.rank, adapter.alpha) == (2, 3)


def test_plain_text_is_refused_as_soon_as_the_start_is_prepared(given, tmp_path):
    (tmp_path / "test.jsonl").write_text(
        "".join(json.dumps({"text": f"Words of number {n}."}) + "\n" for n in range(8))
    )
    first = next(open_contest(given, tmp_path / "r", (f"base.prepare.test={tmp_path / 'test.jsonl'}",)).work())
    assert (first.name, first.stage) == ("start", "prepare")
    with pytest.raises(DataError, match=r"start: the test rows are plain text, which asks nothing"):
        first.do()


def test_the_recipe_that_is_shipped_refers_to_what_it_has():
    tree = yaml.safe_load((ROOT / "recipes" / "showdown.yaml").read_text())
    assert set(references(tree["roads"])) == {("best", "rows"), ("pairs", "rows"), ("judge", "run")}
    assert set(tree["roads"]) == {"sft", "rejection", "dpo", "grpo", "rlhf"}
