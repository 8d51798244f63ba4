"""What may be searched, what is proposed, and what is said of early scores: numbers and errors, without any training."""

import itertools
import json
import math
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from tunesmith.base import ConfigError, MachineError
from tunesmith.stages.recipe import Recipe, read_recipe
from tunesmith.stages.report.search import _axis, _slice, early
from tunesmith.stages.search.proposals import Known, distributions, grid, importance, propose, require, snapped
from tunesmith.stages.search.settings import Search, Values
from tunesmith.stages.search.space import chosen, given, space_of, told
from tunesmith.stages.search.trial import step_of

RATE, RANK, ALPHA = "finetune.optimizer.learning_rate", "initialise.adapter.rank", "initialise.adapter.alpha"
SPACE = {
    RATE: Values(low=1e-5, high=1e-1, log=True),
    RANK: Values(values=(4, 8, 16)),
    "initialise.adapter.targets": Values(values=("all-linear", ["q_proj"])),
    "finetune.batch": Values(low=2, high=8),
}


def recipe(search: dict, **sections) -> Recipe:
    tree = {"prepare": {"source": "rows.jsonl"}, "search": {"trials": 3, **search}, **sections}
    return Recipe.model_validate(tree)


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({"initialise.adapter.rnk": [4]}, "initialise.adapter.rnk: no such field; did you mean 'rank'"),
        ({"finetune.optimzer.learning_rate": [0.1]}, "finetune.optimzer: no such field; did you mean 'optimizer'"),
        ({"finetune.batch": [8, 0]}, "finetune.batch: input should be greater than or equal to 1; got 0"),
        ({RATE: {"low": -1.0, "high": 1.0}}, f"{RATE}: input should be greater than 0; got -1.0"),
        ({"initialise.adapter.kind": ["lora", "lara"]}, "'lara' does not exist; did you mean 'lora'"),
        ({"initialise.adapter.kind": ["lora", "full"], RANK: [4, 8]}, "initialise.adapter.rank: no such field"),
        ({"prepare.rows": [10, 20]}, "prepare.rows: changes the rows that trials are compared on"),
        ({"evaluate.max_tokens": [10, 20]}, "evaluate.max_tokens: changes how the result is measured"),
        ({"seed": [1, 2]}, "seed: changes the rows that are held out"),
        ({"model": ["a", "b"]}, "model: changes the tokens"),
        ({"search.keep": [1, 2]}, "search.keep: is the search itself"),
        ({"serve.port": [1, 2]}, "serve.port: is no part of a training"),
        ({"traning.rate": [1, 2]}, "traning.rate: does not exist"),
        ({"finetune.validation.rows": [8, 16]}, "finetune.validation.rows: trials are compared by it"),
        ({"finetune.objective.label_smoothing": [0.0, 0.1]}, "changes what the validation score counts"),
        ({"finetune": [{"validation": {"metric": "loss", "rows": 8}}]}, "finetune.validation: trials are compared by it"),
        ({"finetune": [{"objective": {"label_smoothing": 0.1}}]}, "finetune.objective: changes what the validation score counts"),
        ({ALPHA: {"values": [1, 2], "times": RANK}, RANK: {"values": [1, 2], "times": "finetune.batch"}}, f"times: {RANK} is a multiple itself"),
        ({ALPHA: {"values": [1, 2], "times": "initialise.adapter.dropout"}}, "initialise.adapter.dropout is 0 in this recipe"),
        ({"finetune.batch.size": [1]}, "this recipe has no settings below 'batch'"),
        ({ALPHA: {"values": [1, 2], "times": "initialise.adapter.kind"}}, "initialise.adapter.kind is no number"),
        ({RATE: {"low": 1e-3, "high": 1e-4}}, "low 0.001 has to be below high 0.0001"),
        ({RATE: {"low": 0, "high": 1e-4, "log": True}}, "low 0 has no logarithm"),
        ({RATE: {"low": 1e-4}}, "give a list of values, or low and high"),
        ({RATE: {"low": 1e-4, "high": 1e-3, "values": [1]}}, "not both"),
        ({"finetune.batch": {"low": 1, "high": 8, "step": 0.5}}, "takes whole steps"),
    ],
)  # fmt: skip
def test_a_space_that_makes_no_sense_is_refused_before_anything_is_loaded(tmp_path, space, said):
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps({"prepare": {"source": "absent.jsonl"}, "search": {"trials": 3, "space": space}}))
    with pytest.raises(ConfigError) as refused:
        read_recipe(path)
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("search", "sections", "said"),
    [
        ({"sampler": "grid"}, {}, "a grid needs lists"),
        ({"sampler": "grid", "space": {RATE: {"low": 1e-4, "high": 1e-3}}}, {}, f"give {RATE} a list of values or a step"),
        ({"audit": True, "scheme": "halving"}, {}, "an audit stops none"),
        ({}, {"prepare": {"source": "rows.jsonl", "validation_fraction": 0}}, "trials are compared on validation rows"),
        ({"early": 1.0}, {}, "less than 1"),
    ],
)  # fmt: skip
def test_a_search_that_cannot_be_made_is_refused(search, sections, said):
    with pytest.raises(ValueError, match=said):
        recipe(search, **sections)


def test_without_trials_a_space_is_not_looked_at():
    assert recipe({"trials": 0, "space": {"no.such": [1]}}).search.trials == 0
    assert Search().model_dump() == Search.model_validate({}).model_dump()


def test_the_default_space_is_what_the_recipe_has_of_it():
    assert set(space_of(recipe({}))) == {
        RATE, RANK, ALPHA, "initialise.adapter.dropout", "initialise.adapter.targets", "finetune.batch", "finetune.schedule.warmup",
    }  # fmt: skip
    for kind, rate in (("adamw", 3e-4), ("adagrad", 0.01), ("mezo", 1e-6)):
        around = space_of(recipe({}, finetune={"optimizer": {"kind": kind, "learning_rate": rate}}))[RATE]
        assert (around.low, around.high, around.log) == (rate / 30, rate * 10, True)
    paid = {"objective": {"kind": "grpo"}, "rollouts": {"rewards": [{"grader": {"kind": "exact"}}]}}
    assert set(space_of(recipe({}))) - set(space_of(recipe({}, finetune=paid))) == {"initialise.adapter.dropout"}
    full = recipe({}, initialise={"adapter": {"kind": "full"}})
    assert set(space_of(full)) == {RATE, "finetune.batch", "finetune.schedule.warmup"}


def test_settings_are_laid_into_the_recipe_kinds_first_and_multiples_last():
    search = {
        "space": {ALPHA: {"values": [0.5, 2], "times": RANK}, RANK: [4, 8], "initialise.adapter.kind": ["lora", "dora"]}
    }
    own = recipe(search, initialise={"adapter": {"kind": "lora", "rank": 8, "alpha": 4, "dropout": 0.1}})
    laid = chosen(own, {ALPHA: 2, RANK: 4, "initialise.adapter.kind": "dora"})
    assert laid.initialise.adapter.model_dump() == {
        **laid.initialise.adapter.model_dump(),
        "kind": "dora",
        "rank": 4,
        "alpha": 8.0,
        "dropout": 0.0,
    }
    assert laid.search.trials == 0
    assert told(own, {ALPHA: 2, RANK: 4}) == {ALPHA: 8.0, RANK: 4}
    assert given(own.model_dump(mode="json"), space_of(own)) == {ALPHA: 0.5, RANK: 8, "initialise.adapter.kind": "lora"}
    assert chosen(own, {}) == own.model_copy(update={"search": Search()})
    whole = {"space": {"initialise.adapter": [{"kind": "lora", "rank": 2}, {"kind": "full"}]}}
    assert chosen(recipe(whole), {"initialise.adapter": {"kind": "full"}}).initialise.adapter.kind == "full"


def inside(settings: dict) -> bool:
    return (
        1e-5 <= settings[RATE] <= 1e-1 and settings[RANK] in (4, 8, 16) and settings["finetune.batch"] in range(2, 9)
        and settings["initialise.adapter.targets"] in ("all-linear", ["q_proj"])
    )  # fmt: skip


def score(settings: dict) -> float:
    """Least at a rate of 1e-3 and rank 16."""
    return (math.log10(settings[RATE]) + 3) ** 2 + (16 - settings[RANK]) / 12


def trials(sampler: str, count: int, seed: int = 0, sign: int = 1) -> list[Known]:
    known: list[Known] = []
    search = Search(sampler=sampler, start=4)
    for number in range(1, count + 1):
        settings, _ = propose(search, SPACE, seed, number, known, sign == 1)
        known.append(Known(settings, None if number == 3 else sign * score(settings)))
    return known


@pytest.mark.parametrize("sampler", ["gp", "tpe", "random"])
def test_proposals_lie_in_the_space_and_depend_on_seed_number_and_scores_alone(sampler):
    first = trials(sampler, 7)
    assert all(inside(each.settings) for each in first)
    assert [each.settings for each in trials(sampler, 7)] == [each.settings for each in first]
    assert trials(sampler, 7, seed=1)[0].settings != first[0].settings
    search, last = Search(sampler=sampler, start=4), first[:6]
    other = [Known(each.settings, 5.0 * (place == 1)) for place, each in enumerate(last)]
    again = propose(search, SPACE, 0, 7, other, True)
    assert again[1] == sampler
    assert (again[0] == first[6].settings) == (sampler == "random")


@pytest.mark.parametrize(("sampler", "count", "sign"), [("gp", 16, 1), ("gp", 16, -1), ("tpe", 36, 1)])
def test_a_sampler_goes_where_scores_are_good(sampler, count, sign):
    """Of whichever sign: its last proposals are better than those at random, of which about a quarter is as good."""
    found = [score(each.settings) for each in trials(sampler, count, sign=sign)]
    chance = np.quantile([score(each.settings) for each in trials("random", 60, seed=3)], 0.25)
    assert np.median(found[-6:]) < chance


def test_a_grid_is_every_combination_once_and_then_nothing():
    space = {
        RANK: Values(values=(4, 8)),
        "finetune.batch": Values(low=2, high=6, step=2),
        "finetune.clip": Values(values=(0.0, 1.0)),
    }
    known, search = [], Search(sampler="grid")
    while (found := propose(search, space, 0, len(known), known, True)) is not None:
        known.append(Known(found[0], None))
    expected = {
        json.dumps(dict(zip(space, point, strict=True))) for point in itertools.product((4, 8), (2, 4, 6), (0.0, 1.0))
    }
    assert {json.dumps(each.settings) for each in known} == expected
    assert len(known) == 12
    assert grid(space, 0) != grid(space, 1)


def test_no_settings_are_tried_twice():
    space, known = {RANK: Values(values=(4, 8, 16)), "finetune.batch": Values(values=(4, 8))}, []
    for number in range(1, 7):
        settings, by = propose(Search(sampler="tpe", start=2), space, 0, number, known, True)
        assert (
            by == "random" if number < 2 else by in ("tpe", "random")
        )  # a draw, where the sampler asks for what was tried
        known.append(Known(settings, float(number)))
    assert len({json.dumps(each.settings) for each in known}) == 6
    assert propose(Search(sampler="tpe"), space, 0, 7, known, True) is None


def test_values_keep_their_order_where_they_have_one():
    found = distributions(
        {
            "a": Values(values=(4, 8, 16)),
            "b": Values(values=(8, 4)),
            "c": Values(values=(True, False)),
            "d": Values(low=1, high=4),
            "e": Values(low=0, high=0.5),
        }
    )
    assert [type(each).__name__ for each in found.values()] == [
        "IntDistribution", "CategoricalDistribution", "CategoricalDistribution", "IntDistribution", "FloatDistribution",
    ]  # fmt: skip
    assert snapped({"a": Values(values=(1, 2))}, {"a": 2.0}) == {"a": 2}
    assert snapped({"a": Values(values=(1, 2))}, {"a": 3.0}) == {"a": 3.0}


def test_importance_is_of_what_decides():
    shares = importance(SPACE, trials("random", 60), True)
    assert sum(shares.values()) == pytest.approx(1)
    assert max(shares, key=shares.get) == RATE
    assert importance(SPACE, trials("random", 3), True) == {}


def test_what_has_no_place_on_an_axis_is_left_out():
    """The recipe's own value, when it lies outside the space: 0 on an axis that goes by ratios, null on one of numbers."""
    decay, micro = "finetune.optimizer.weight_decay", "finetune.micro_batch"
    own, other = ({"number": n, "settings": {decay: d, micro: m}, "scores": {"0.2": 1.0 - n}} for n, d, m in ((0, 0.0, None), (1, 0.01, 4)))  # fmt: skip
    space = {decay: {"low": 1e-4, "high": 0.1, "log": True}, micro: {"low": 1, "high": 8}}
    found = {"space": space, "trials": [own, other], "winner": 1, "metric": "loss", "lower_is_better": True}
    for path in space:
        across = _axis(found, path)
        assert 0 <= across.place(other["settings"][path]) <= 100
        assert len(_slice(found, [own, other], "0.2", path, across).dots) == 1


def test_one_loss_that_is_far_off_does_not_press_the_others_together():
    def heights(lower_is_better, *final):
        trials = [{"number": n, "scores": {"0.2": 2 * loss, "1": loss}} for n, loss in enumerate(final)]
        panel = early({"trials": trials, "winner": 0, "metric": "loss", "lower_is_better": lower_is_better}, "0.2")
        return {dot.text: dot.up for dot in panel.dots}

    assert heights(True, 0.1, 1.0, 10.0) == {"trial 0": 100, "trial 1": 50, "trial 2": 0}
    few = heights(True, 0.1, 0.2, 0.3)
    assert few["trial 0"] - few["trial 1"] == pytest.approx(few["trial 1"] - few["trial 2"]), (
        "by size, where there is room"
    )
    assert heights(False, 0.1, 1.0, 10.0)["trial 1"] > 80


def test_trials_are_scored_on_their_way_where_the_scheme_says():
    plain, audited, halving = Search(), Search(audit=True), Search(scheme="halving")
    assert [plain.marks(rung) for rung in range(2)] == [(0.2,), (1.0,)]
    assert [audited.marks(rung) for rung in range(2)] == [(0.1, 0.2), (0.4, 1.0)]
    assert [Search(audit=True, early=0.3).marks(rung) for rung in range(2)] == [(0.1, 0.2, 0.3), (0.4, 1.0)]
    assert [halving.marks(rung) for rung in range(4)] == [(0.1,), (0.2,), (0.4,), (1.0,)]


def test_a_training_pauses_where_it_can_be_resumed():
    """Which, where several steps learn from the same answers, is not between these."""
    found = [step_of(share, SimpleNamespace(steps=24, repeats=4)) for share in (0.01, 0.1, 0.2, 0.4, 1.0)]
    assert found == [4, 4, 8, 12, 24]
    assert [step_of(share, SimpleNamespace(steps=7, repeats=1)) for share in (0.01, 0.2, 0.4, 1.0)] == [1, 1, 3, 7]


def test_without_optuna_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(
        MachineError, match=r"search: the package 'optuna' is not installed; run: pip install .*\[search\]"
    ):
        require()
