"""Variants of a recipe are trained with the same seeds, measured on the same rows, and told apart with intervals; nothing is trained twice."""

import json

import pytest
from typer.testing import CliRunner

from tunesmith.base import ConfigError, Run
from tunesmith.base.files import read_json
from tunesmith.cli.app import app
from tunesmith.methods.optimizers.lion import Lion
from tunesmith.stages.compare import GIVEN, _held_out, compare, variants
from tunesmith.stages.pipeline import open_run
from tunesmith.stages.vary import settings_of


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, tiny_folder):
    """Some steps of a tiny model on three colours, one of them rare."""
    folder = tmp_path_factory.mktemp("compare")
    colours = ["red"] * 9 + ["green"] * 4 + ["blue"]
    lines = [{"prompt": f"Shade {number}?", "answer": colours[number % len(colours)]} for number in range(56)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = {
        "model": str(tiny_folder),
        "precision": "fp32",
        "prepare": {
            "source": "rows.jsonl",
            "test_fraction": 14,
            "validation_fraction": 0,
            "cleaners": [],
            "classes": "answer",
        },
        "initialise": {"adapter": {"rank": 4}},
        "finetune": {
            "epochs": 1.0,
            "batch": 8,
            "balance": {"weight": 1},
            "optimizer": {"learning_rate": 0.02},
            "schedule": {"warmup": 0},
        },
        "evaluate": {
            "graders": [
                {"kind": "exact"},
                {"kind": "classes"},
                {"kind": "perplexity"},
                {"kind": "average_precision", "rows": 12},
            ],
            "max_tokens": 3,
            "slices": ["answer"],
        },
    }
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(settings))
    return path


VARY = ("finetune.balance.weight=1", "finetune.balance={power: 0, size: over} finetune.epochs=0.5")


@pytest.fixture(scope="module")
def made(recipe):
    folder = recipe.parent / "run"
    return folder, compare(recipe, VARY, seeds=2, folder=folder)


def figure(found, grader, name):
    (one,) = (each for each in found["figures"] if (each["grader"], each["name"]) == (grader, name))
    return one


def test_each_variant_is_trained_by_each_seed_on_the_same_rows(made):
    folder, found = made
    names = [GIVEN, "balance={power: 0, size: over} epochs=0.5"]
    assert [each["name"] for each in found["variants"]] == names  # weight=1 is the recipe itself
    assert (found["seeds"], found["rows"]) == ([0, 1], 14)
    assert len(list(folder.glob("prepare-*"))) == 1
    assert len(list(folder.glob("finetune-*"))) == len(list(folder.glob("ask-*"))) == 4
    given, drawn = (each["runs"][0] for each in found["variants"])
    rows, weights = ({name: each[key] for name, each in given["classes"].items()} for key in ("rows", "weight"))
    assert weights == pytest.approx({name: 42 / (3 * count) for name, count in rows.items()}, abs=1e-4)
    assert {name: each["epoch"] for name, each in given["classes"].items()} == rows
    assert {each["epoch"] for each in drawn["classes"].values()} == {max(rows.values())}
    assert (given["steps"], drawn["steps"]) == (6, round(-(-3 * max(rows.values()) // 8) / 2))


def test_what_is_varied_lies_over_what_is_given(recipe):
    given_ = ("finetune.optimizer.kind=sgd", "finetune.optimizer.weight_decay=0.3")
    first, second = variants(recipe, given_, ("finetune.optimizer.kind=lion",))
    assert first.recipe.finetune.optimizer.weight_decay == 0.3
    assert second.recipe.finetune.optimizer == Lion()


def test_values_are_means_over_seeds_and_differences_are_from_the_first(made):
    _, found = made
    for grader, name in (
        ("exact", "headline"),
        ("classes", "headline"),
        ("classes", "kappa"),
        ("perplexity", "headline"),
        ("average_precision", "headline"),
        ("average_precision", "by chance"),
    ):
        one = figure(found, grader, name)
        assert one["summary"]
        for variant, value in one["values"].items():
            assert value["value"] == pytest.approx(sum(value["seeds"]) / 2)
            assert value["low"] <= value["value"] <= value["high"]
            if variant != GIVEN:
                apart = one["differences"][variant]
                assert apart["value"] == pytest.approx(value["value"] - one["values"][GIVEN]["value"])
                assert apart["low"] <= apart["value"] <= apart["high"]
    assert figure(found, "perplexity", "headline")["better"] == "lower"
    assert json.dumps(found, allow_nan=False)


def test_the_folder_stays_a_run_of_the_recipe_itself(made, recipe):
    folder, found = made
    assert open_run(folder).recipe.finetune.balance == open_run(recipe).recipe.finetune.balance
    assert Run(folder).states["finetune"]["artifact"] == found["variants"][0]["runs"][0]["finetune"]
    assert read_json(folder / "compare.json") == found


def test_an_evaluation_tells_how_its_models_rank_classes(made):
    folder, found = made
    pipeline = open_run(folder)
    evaluated = pipeline.locked("evaluate")
    block = read_json(evaluated / "results.json")["task"]["graders"]["average_precision"]
    first = figure(found, "average_precision", "headline")["values"][GIVEN]["seeds"][0]
    assert block["systems"]["tuned"]["value"] == pytest.approx(first)
    assert block["systems"].keys() == {"base", "tuned"}
    assert block["differences"]["tuned - base"]["value"] == pytest.approx(first - block["systems"]["base"]["value"])
    assert block["parts"]["by chance"]["systems"]["base"] == block["parts"]["by chance"]["systems"]["tuned"]
    told = read_json(evaluated / "tuned-chances.json")
    assert sum(map(bool, told)) == 12
    assert len(told) == 14
    assert all(sum(each[""].values()) == pytest.approx(1) for each in told if each)


def test_the_command_trains_nothing_again_and_tells_every_variant(made, recipe):
    folder, found = made
    before = sum(1 for _ in Run(folder).events.read("done"))
    command = [
        "compare",
        str(recipe),
        "--run",
        str(folder),
        "--seeds",
        "2",
        *(part for text in VARY for part in ("--vary", text)),
    ]
    done = CliRunner().invoke(app, [*command, "--json"], env={"COLUMNS": "160"})
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout) == found
    assert sum(1 for _ in Run(folder).events.read("done")) == before
    lines = (folder / "compare.md").read_text().splitlines()
    assert (
        lines[0]
        == "14 test rows, 2 trainings each; in brackets 95 % intervals over rows and seeds, which are taken to matter alike in all variants."
    )
    kappas = [line for line in lines if line.startswith("| classes: kappa |")]
    assert [line.split(" | ")[1] for line in kappas] == [each["name"] for each in found["variants"]]
    assert f"* {found['variants'][1]['name']}: `{VARY[1]}`" in lines


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.b=1,0.5,0", [("a.b=1",), ("a.b=0.5",), ("a.b=0",)]),
        ("a.b={c: 1, d: [2, 3]}", [("a.b={c: 1, d: [2, 3]}",)]),
        ("a.b={c: 1}, {c: 2}", [("a.b={c: 1}",), ("a.b={c: 2}",)]),
        ('a.b="x, y",z', [('a.b="x, y"',), ("a.b=z",)]),
        ("a.b=1,2 c=3", [("a.b=1", "c=3"), ("a.b=2", "c=3")]),
    ],
)
def test_how_variants_are_written(text, expected):
    assert settings_of(text) == expected


@pytest.mark.parametrize(
    ("vary", "message"),
    [
        ((), "nothing is varied"),
        (("finetune.balance.power=1",), "nothing is varied"),
        (("finetune.epochs",), "is written path.to.field=value"),
        (("finetune.epoch=1",), "epoch: no such field; did you mean 'epochs'"),
        (("evaluate.max_tokens=9",), "max_tokens=9: variants are measured alike"),
        (("seed=1,2",), "use --seeds"),
    ],
)
def test_what_cannot_be_compared_is_refused_before_anything_is_trained(recipe, vary, message):
    with pytest.raises(ConfigError, match=message):
        variants(recipe, (), vary)


def test_variants_that_hold_out_other_rows_are_refused(made, recipe):
    folder, _ = made
    with pytest.raises(ConfigError, match=r"test_fraction=13: holds out other rows"):
        compare(recipe, ["prepare.test_fraction=13"], folder=folder)


def test_variants_that_are_scored_on_other_tokens_are_refused(recipe, tmp_path):
    all_tokens = ["prepare.supervise=all"]
    with pytest.raises(ConfigError, match=r"supervise=all: perplexity would be of other tokens of the test rows"):
        compare(recipe, all_tokens, folder=tmp_path / "run")
    assert not list((tmp_path / "run").glob("finetune-*"))
    assert len(_held_out(variants(recipe, ("evaluate.graders=[{kind: exact}]",), all_tokens), tmp_path / "run")) == 14


def test_variants_are_told_apart_by_what_of_their_names_differs(recipe):
    found = variants(recipe, (), ["model=a/x.gguf,b/x.gguf", "initialise.adapter.kind=dora", "prune.adapter.kind=dora"])
    assert [each.name for each in found] == [
        GIVEN, "model=a/x.gguf", "model=b/x.gguf", "adapter.kind=dora", "prune.adapter.kind=dora"
    ]  # fmt: skip


def test_a_model_that_scores_answers_is_not_compared(recipe):
    scoring = ("finetune.objective={kind: reward}", "finetune.balance={}", "evaluate={graders: [{kind: pairwise}], general: null, gate: {margin: null}}")  # fmt: skip
    with pytest.raises(
        ConfigError, match="reward leaves a model that scores answers and writes none, so there is nothing to compare"
    ):
        variants(recipe, scoring, ["finetune.epochs=2"])
