"""Recipes: one may extend another, and all that are kept in the repository can be read."""

from pathlib import Path

import pytest

from tunesmith.base import ConfigError
from tunesmith.stages.merged import read_merged
from tunesmith.stages.recipe import read_recipe

RECIPES = Path(__file__).parents[2] / "recipes"


def written(folder, name, text):
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


@pytest.fixture
def base(tmp_path):
    return written(
        tmp_path / "shared",
        "base.yaml",
        "prepare: {source: rows.jsonl, rows: 5}\n"
        "initialise: {adapter: {kind: lora, rank: 4, alpha: 8}}\n"
        "finetune: {batch: 2, epochs: 7}\n",
    )


class TestExtends:
    def test_what_is_said_stands_what_is_not_is_the_base_recipes(self, base, tmp_path):
        path = written(
            tmp_path / "mine", "r.yaml", "extends: ../shared/base.yaml\nfinetune: {epochs: 1}\nprepare: {rows: 9}\n"
        )
        found = read_recipe(path)
        assert (found.finetune.batch, found.finetune.epochs, found.prepare.rows) == (2, 1, 9)
        assert found.initialise.adapter.rank == 4

    def test_paths_are_seen_from_the_recipe_that_says_them(self, base, tmp_path):
        path = written(tmp_path / "mine", "r.yaml", "extends: ../shared/base.yaml\nprepare: {test: held_out.jsonl}\n")
        found = read_recipe(path).prepare
        assert (found.source, found.test) == (str(base.parent / "rows.jsonl"), str(path.parent / "held_out.jsonl"))

    def test_the_token_is_where_the_recipe_says(self, base, tmp_path, monkeypatch):
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        text = "extends: ../shared/base.yaml\nserve: {token_file: token}\n"
        path = written(tmp_path / "mine", "r.yaml", text)
        assert read_recipe(path).serve.token_file == path.parent / "token"
        assert read_recipe(path, ("serve.token_file=~/token",)).serve.token_file == tmp_path / "home" / "token"
        several = written(tmp_path / "mine", "ab.yaml", "runs: [a, ~/b]\nserve: {token_file: ../token}\n")
        found = read_merged(several)
        assert (found.serve.token_file, found.runs) == (
            tmp_path / "token",
            (path.parent / "a", tmp_path / "home" / "b"),
        )

    def test_a_member_of_another_kind_takes_no_fields_over(self, base, tmp_path):
        text = "extends: ../shared/base.yaml\ninitialise: {adapter: {kind: ia3}}\n"
        assert read_recipe(written(tmp_path / "mine", "r.yaml", text)).initialise.adapter.kind == "ia3"

    def test_a_kind_that_the_base_recipe_left_out_is_the_default(self, tmp_path):
        written(tmp_path, "base.yaml", "prepare: {source: rows.jsonl}\ninitialise: {adapter: {rank: 4}}\n")
        text = "extends: base.yaml\ninitialise: {adapter: {kind: lora, alpha: 8}}\n"
        found = read_recipe(written(tmp_path, "r.yaml", text)).initialise.adapter
        assert (found.rank, found.alpha) == (4, 8)

    def test_models_that_teach_are_seen_from_the_recipe_that_says_them(self, base, tmp_path):
        (tmp_path / "mine" / "big").mkdir(parents=True)
        text = "extends: ../shared/base.yaml\n" + "".join(
            f"{stage}: {{{inside}objective: {{kind: distill, teacher: big}}{end}}}\n"
            for stage, inside, end in (("finetune", "", ""), ("prune", "method: {kind: magnitude}, recovery: {", "}"))
        )
        found = read_recipe(written(tmp_path / "mine", "r.yaml", text))
        for tune in (found.finetune, found.prune.recovery):
            assert tune.objective.teacher == str(tmp_path / "mine" / "big")

    def test_assignments_come_last(self, base, tmp_path):
        path = written(tmp_path / "mine", "r.yaml", "extends: ../shared/base.yaml\nfinetune: {epochs: 1}\n")
        assert read_recipe(path, ("finetune.epochs=3",)).finetune.epochs == 3

    def test_circles_and_missing_recipes_are_named(self, tmp_path):
        first = written(tmp_path, "a.yaml", "extends: b.yaml\n")
        written(tmp_path, "b.yaml", "extends: a.yaml\n")
        with pytest.raises(ConfigError, match="break the circle"):
            read_recipe(first)
        with pytest.raises(ConfigError, match=r"gone\.yaml: no such file"):
            read_recipe(written(tmp_path, "c.yaml", "extends: gone.yaml\n"))
        with pytest.raises(ConfigError, match="takes the path of one recipe"):
            read_recipe(written(tmp_path, "d.yaml", "extends: [a.yaml]\n"))


@pytest.mark.parametrize(
    "path", sorted({*RECIPES.rglob("*.yaml")} - {RECIPES / "showdown.yaml"}), ids=lambda path: path.stem
)
def test_every_kept_recipe_can_be_read(path):
    assert read_recipe(path).prepare.source


@pytest.mark.parametrize("path", sorted((RECIPES / "methods").glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_of_methods_differ_in_their_method_alone(path):
    mine, base = read_recipe(path), read_recipe(RECIPES / "methods" / "base.yaml")
    if mine.finetune.objective.scores:  # writes no answers: pairs of the same test rows' answers stand for them
        assert Path(mine.prepare.test).name == "held-out-pairs.jsonl"
        assert [grader.kind for grader in mine.evaluate.graders] == ["pairwise"]
        return
    if (
        mine.evaluate.graders[0].kind == "perplexity"
    ):  # plain text asks nothing: the test rows' descriptions stand for them
        assert Path(mine.prepare.test).name == "held-out-texts.jsonl"
        assert mine.evaluate.model_copy(update={"graders": base.evaluate.graders}) == base.evaluate
        return
    assert (mine.prepare.test, mine.prepare.test_rows, mine.evaluate) == (
        base.prepare.test,
        base.prepare.test_rows,
        base.evaluate,
    )


@pytest.mark.parametrize(
    ("beaten", "setting", "there"),
    [
        ("fewshot", "{}", "base, few-shot, majority, svm"),
        ("few-shot", "{shots: 0}", "base, majority, svm"),
        ("svm", "{baselines: false}", "base, few-shot"),
        ("prompted", "{}", "base, few-shot, majority, svm"),
        ("length", "{}", "base, few-shot, majority, svm"),
    ],
)
def test_a_rival_that_is_never_asked_is_refused(tmp_path, beaten, setting, there):
    given = written(tmp_path, "r.yaml", f"prepare: {{source: a.jsonl}}\nevaluate: {setting}\n")
    with pytest.raises(
        ConfigError, match=f"gate.beat: '{beaten}' is none of what this recipe compares with, which is {there};"
    ):
        read_recipe(given, (f"evaluate.gate.beat=[{beaten}]",))
    assert read_recipe(given, ("evaluate.gate.beat=[base]",)).evaluate.gate.beat == ("base",)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_dropout_is_refused_where_answers_are_sampled(tmp_path, kind):
    adapter = f"{{kind: {kind}, dropout: 0.1}}"
    tune = "{objective: {kind: grpo}, rollouts: {rewards: [{grader: {kind: exact}}]}}"
    again = f"{{method: {{kind: heads}}, recovery: {tune}, adapter: {adapter}}}"
    for place, name, text in (
        ("initialise.adapter", "finetune", f"finetune: {tune}\ninitialise: {{adapter: {adapter}}}\n"),
        ("prune.adapter", "prune.recovery", f"prune: {again}\n"),
    ):
        given = written(tmp_path, "r.yaml", f"prepare: {{source: a.jsonl}}\n{text}")
        with pytest.raises(ConfigError, match=rf"{place}\.dropout: {name}\.objective grpo learns without .* to 0"):
            read_recipe(given)
        assert read_recipe(given, (f"{place}.dropout=0",))


def test_marks_are_compared_with_their_mean_and_pairs_with_the_length_too():
    pairs, marks = (RECIPES / "methods" / f"{name}.yaml" for name in ("reward", "regression"))
    assert read_recipe(pairs, ("evaluate.gate.beat=[length]",)).evaluate.gate.beat == ("length",)
    with pytest.raises(ConfigError, match="which is base;"):
        read_recipe(marks, ("evaluate.gate.beat=[length]",))


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("finetune.epochs=.inf", "finetune.epochs: input should be a finite number; got inf"),
        ("finetune.optimizer.learning_rate=.nan", "learning_rate: input should be a finite number; got nan"),
        ("evaluate.graders=[]", "evaluate.graders: tuple should have at least 1 item"),
        ("initialise.adapter=lora", "initialise.adapter: takes settings, not the word 'lora'; write {kind: lora}"),
        ("finetune.optimizer=adagrat", "finetune.optimizer: takes settings, not the word 'adagrat'; write {kind: adagrad}"),
        ("evaluate.graders=exact", "evaluate.graders: takes settings, not the word 'exact'; write [{kind: exact}]"),
        ("evaluate.graders=[exact]", "evaluate.graders.0: takes settings, not the word 'exact'; write {kind: exact}"),
        ("evaluate.graders=some", "evaluate.graders: input should be a valid tuple; got 'some'"),
        ("finetune.validation.metric=los", "finetune.validation.metric: input should be"),
    ],
)  # fmt: skip
def test_a_slip_is_answered_by_what_to_write(tmp_path, setting, told):
    with pytest.raises(ConfigError) as refused:
        read_recipe(written(tmp_path, "r.yaml", "prepare: {source: a.jsonl}\n"), (setting,))
    assert told in str(refused.value)
