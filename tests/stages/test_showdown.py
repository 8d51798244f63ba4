"""A showdown gives every road the same compute, counts what it spent, and its page says what its files say."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from markupsafe import escape
from showdowns import BUDGET, EVIL, write_showdown
from test_report import Reader

from tunesmith.base import ConfigError
from tunesmith.base.files import read_json
from tunesmith.base.spec import merged, validate
from tunesmith.cli.running import write_report
from tunesmith.data.batch import Batch
from tunesmith.data.example import Row, Sequence
from tunesmith.data.prepared import load_examples, load_split
from tunesmith.data.render import Renderer
from tunesmith.models import find
from tunesmith.models.forward import padded_logps
from tunesmith.models.generate import Sampling, generate
from tunesmith.models.load import load
from tunesmith.stages import sample
from tunesmith.stages.finetune import Finetune
from tunesmith.stages.judge import merge
from tunesmith.stages.pipeline import open_run
from tunesmith.stages.recipe import Recipe
from tunesmith.stages.report import showdown as page
from tunesmith.stages.showdown import open_contest
from tunesmith.stages.showdown.cost import Cost, affordable, in_an_epoch, per_token
from tunesmith.training.balance import Balance
from tunesmith.training.rollouts import continued, seed_of


@pytest.fixture(scope="module")
def given(tmp_path_factory, tiny_folder) -> Path:
    return write_showdown(tmp_path_factory.mktemp("showdown"), tiny_folder)


@pytest.fixture(scope="module")
def done(given):
    """The whole showdown, once."""
    with pytest.MonkeyPatch.context() as patch:
        tokenizer = cache(find.load_tokenizer)  # a third of the time is reading it again
        patch.setattr("tunesmith.models.load.load_tokenizer", tokenizer)
        patch.setattr("tunesmith.stages.prepare.load_tokenizer", tokenizer)
        make = sample._try
        patch.setattr(sample, "_try", lambda *pair: type(made := make(*pair))(**{**vars(made), "whole": True}))
        contest = open_contest(given, given.parent / "run")
        worked = [(work.name, work.stage, work.do()) for work in contest.work()]
    return contest, worked


def results(contest) -> dict:
    return read_json(contest.run.artifact("compare") / "results.json")


def test_every_road_starts_from_the_same_model_and_spends_the_same(done):
    contest, worked = done
    start = contest.pipelines["start"].deploy() / "model"
    found = results(contest)
    for name in contest.spec.roads:
        assert contest.pipelines[name].recipe.model == str(start)
        assert found["cost"][name]["passes"] == pytest.approx(BUDGET, rel=0.1), name
    assert contest.pipelines["dpo"].finetune().metrics["steps"] < contest.pipelines["sft"].finetune().metrics["steps"]
    assert [name for name, stage, _ in worked if stage == "sample"] == ["pairs"]
    assert found["cost"]["sft"]["sampled"] == 0 < found["cost"]["dpo"]["sampled"]
    assert found["cost"]["grpo"]["sampled"] > 0
    for name in (
        "grpo",
        "rlhf",
    ):  # answers that are alike are computed once, so nobody knows before how many steps a budget pays
        road = contest.pipelines[name]
        assert road.finetune().metrics["steps"] < road.finetune().metrics["planned_steps"]
        assert found["cost"][name]["passes"] >= 0.99 * BUDGET, name


def test_passes_are_those_of_the_tokens_that_went_through(done):
    contest, _ = done
    sft, costs = contest.pipelines["sft"], results(contest)["cost"]
    steps = [event["distinct"] for event in sft.run.events.read("step")]
    assert costs["sft"]["passes"] == 2 * sum(steps)  # frozen weights: forwards and backwards
    sampled, tuned = contest.pipelines["pairs"].sample().metrics, contest.pipelines["dpo"]
    prompts = [json.loads(line) for line in (contest.pipelines["pairs"].sample() / "answers.jsonl").open()]
    tokens = sum(each["tokens"] for line in prompts for each in line["answers"])
    assert sampled["answer_tokens"] == tokens
    steps = [event["distinct"] for event in tuned.run.events.read("step")]
    rows = load_split(tuned.prepare().path, "train")
    reference = sum(batch.distinct for n in range(-(-len(rows) // 4)) for batch in tuned.recipe.finetune.dataset(rows, 0).step(n))  # fmt: skip
    assert costs["dpo"]["passes"] == pytest.approx(
        2 * sum(steps) + reference + sampled["prompt_tokens"] + tokens, abs=1
    )
    steps = list(contest.pipelines["grpo"].run.events.read("step"))
    assert costs["grpo"]["passes"] == 3 * sum(event["distinct"] for event in steps)  # sampled, then learnt from
    assert costs["grpo"]["sampled"] == sum(event["sampled_tokens"] for event in steps)


def test_what_a_token_costs_depends_on_what_is_done_with_it(given):
    def cost(*settings):
        return per_token(open_run(given.parent / "run" / "sft", None, settings).recipe)

    rollouts = "finetune.rollouts={rewards: [{grader: {kind: chrf}}], updates: 2}"
    assert cost() == 2
    assert cost("initialise.adapter={kind: full}") == 3
    assert cost("finetune.optimizer={kind: mezo}") == 2  # two passes forwards, none backwards
    assert (
        cost("finetune.objective={kind: grpo, beta: 0.1}", rollouts) == 2 + (1 + 1 + 1) / 2
    )  # sampled, measured twice
    drawn = ("prepare.classes=answer", "finetune.balance={power: 0}", "finetune.objective={kind: grpo}")
    assert cost(*drawn, rollouts) == cost("finetune.objective={kind: grpo}", rollouts)
    assert Cost(1, 2, 3, 4.0, 5) + Cost(1, 1, 1, 1.0, 9) == Cost(2, 3, 4, 5.0, 9)


def test_divergence_is_the_mean_of_what_both_models_say_of_sampled_tokens(done):
    contest, _ = done
    road, made, found = contest.pipelines["sft"], contest.measured["sft"], results(contest)["divergence"]
    start, tuned = load(road.recipe.model, "fp32"), load(road.recipe.model, "fp32")
    merge(tuned, road.adapter, road.finetune(), "fp32")
    renderer = Renderer(tuned.tokenizer)
    prompts = [renderer.prompt(example.prompt) for example in load_examples(road.prepare().path, "test")]
    samplings = [Sampling(6, 1.0, seed=seed_of(0, number)) for number in range(len(prompts))]
    said = generate(tuned, prompts, samplings)
    assert [one.text for one in said] == [json.loads(line)["answer"] for line in (made / "answers.jsonl").open()]
    apart = [
        float((padded_logps(tuned, batch) - padded_logps(start, batch)).detach().sum())
        for batch in (Batch.of([Row("x", (continued(*talk),))]) for talk in zip(prompts, said, strict=True))
    ]
    assert found["sft"]["tokens"] == sum(len(one.tokens) for one in said)
    assert found["sft"]["value"] == pytest.approx(sum(apart) / found["sft"]["tokens"], abs=1e-4)
    assert found["sft"]["per_answer"] == pytest.approx(np.mean(apart), abs=1e-3)
    assert 0 < found["sft"]["low"] <= found["sft"]["value"] <= found["sft"]["high"]  # it was trained hard


def test_the_page_says_what_the_files_say_and_loads_nothing(done):
    contest, _ = done
    path = page.write(contest.run)
    found = results(contest)
    assert read_json(contest.run.path / "results.json") == found
    read = Reader(path.read_text(encoding="utf-8"))
    block = found["task"]["graders"]["chrf"]
    assert set(block["differences"]) == {f"{name} - sft" for name in ("start", "dpo", "grpo", "rlhf")}
    for name in contest.spec.roads:
        assert f"{block['systems'][name]['value']:.1f}" in read.text
        assert f"{found['cost'][name]['passes']:,}" in read.text
        assert f"{found['divergence'][name]['value']:.3f}".replace("-", "−") in read.text
    assert EVIL in read.text
    assert not {tag for tag, _ in read.tags} & {"script", "link", "img", "iframe", "object", "base", "form"}
    answers = [json.loads(line) for line in (contest.run.artifact("compare") / "answers.jsonl").open()]
    articles = [part.partition("</article>")[0] for part in path.read_text(encoding="utf-8").split("<article")[1:]]
    assert len(articles) == 5
    for article in articles:
        (line,) = (each for each in answers if f"/{each['origin']}<".split("/")[-1] in article)
        assert all(escape(text) in article for text in line["answers"].values())


def test_differences_are_paired_and_from_the_road_that_was_named(done):
    contest, _ = done
    block = results(contest)["task"]["graders"]["exact"]
    answers = [json.loads(line) for line in (contest.run.artifact("compare") / "answers.jsonl").open()]
    right = {
        name: np.mean([line["answers"][name] == line["gold"] for line in answers]) for name in answers[0]["answers"]
    }
    assert list(right) == ["base", "start", "sft", "dpo", "grpo", "rlhf"]
    for name, found in block["systems"].items():
        assert found["value"] == pytest.approx(100 * right[name])
    for name, found in block["differences"].items():
        assert found["value"] == pytest.approx(100 * (right[name.split(" - ")[0]] - right["sft"]))


def test_what_is_there_is_not_computed_again_and_a_new_budget_begins_with_the_roads(done, given):
    contest, worked = done
    before = {path: path.stat().st_mtime_ns for path in contest.run.path.rglob("manifest.json")}
    again = [work.do() for work in open_contest(given, contest.run.path).work()]
    assert [made.path for made in again] == [made.path for *_, made in worked]
    more = open_contest(given, contest.run.path, ("budget=18000",))
    for work in more.work():
        if (work.name, work.stage) == ("sft", "finetune"):
            break
        work.do()
    epochs = [each.pipelines["sft"].recipe.finetune.epochs for each in (contest, more)]
    assert epochs[1] == pytest.approx(1.5 * epochs[0], abs=1e-3)
    assert before == {path: path.stat().st_mtime_ns for path in contest.run.path.rglob("manifest.json")}


def test_a_budget_that_is_not_enough_for_a_step_is_refused(done):
    road = done[0].pipelines["dpo"]
    with pytest.raises(
        ConfigError, match=r"dpo: of its budget 0 token passes are left .* raise budget, or sample less"
    ):
        affordable(road.recipe, road.prepare(), -70, "dpo")
    assert affordable(road.recipe, road.prepare(), 7000, "dpo").finetune.epochs > 1


def test_a_budget_pays_for_other_models_that_read_the_rows_and_for_the_rows_that_are_drawn(done):
    road = done[0].pipelines["sft"]
    epochs = {}
    for name, tune in {
        "sft": {}, "distill": {"objective": {"kind": "distill", "teacher": road.recipe.model}}, "start": {"objective": {"kind": "distill"}}
    }.items():  # fmt: skip
        changed = merged(road.recipe.model_dump(mode="json"), {"finetune": tune})
        epochs[name] = affordable(validate(Recipe, changed, name), road.prepare(), 9000, name).finetune.epochs
    assert (
        epochs["distill"] == epochs["start"] == pytest.approx(epochs["sft"] - 1 / 2, abs=0.01)
    )  # one pass of two that a token of a step takes
    long, short = (
        Row("r", (Sequence(np.arange(count, dtype=np.int32), np.arange(count) > 1),), classes=(name,))
        for name, count in (("many", 4), ("one", 40))
    )
    tune = Finetune(balance=Balance(power=0), batch=1)  # a row by itself shares nothing
    rows = [*[replace(long, origin=str(n)) for n in range(9)], short]
    assert in_an_epoch(tune.dataset(rows, 0)) == 5 * 4 + 5 * 40


def test_the_command_for_reports_writes_its_page_again(done):
    contest, _ = done
    said = page.write(contest.run).read_text()
    (contest.run.path / "report.html").write_text("")
    write_report(contest.run.path)
    assert (contest.run.path / "report.html").read_text() == said
