"""What a training reads and writes fits into the model's context, or is refused before anything is loaded."""

import json

import pytest
from whole_runs import write_recipe

from tunesmith.base import ConfigError, DataError, Output
from tunesmith.stages.finetune import Finetune, begin
from tunesmith.stages.pipeline import open_run
from tunesmith.stages.search.study import LOST

WHERE = r"rows\.jsonl:\d+: "
PROMPT = "{kind: prompt, tokens: 240}"
GRPO = ("initialise.adapter.dropout=0", "finetune.objective={kind: grpo}")
PAID = "{rewards: [{grader: {kind: exact}}], max_tokens: 250}"
LEAVES = WHERE + r"asks in \d\d tokens, which leaves no room for an answer of "


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, tiny_folder):
    return write_recipe(tmp_path_factory.mktemp("reach"), tiny_folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of a run, whose rows are prepared once."""
    return tmp_path_factory.mktemp("run")


def look(recipe, folder, *settings):
    """Find out what is found out before anything is loaded."""
    pipeline = open_run(recipe, folder, settings)
    pipeline._check(pipeline.prepare())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ([f"initialise.adapter={PROMPT}"], WHERE + r"\d\d tokens, and the model has positions for 256, 240 of which are the adapter's; set prepare.max_tokens=16, or lower initialise.adapter.tokens"),
        ([*GRPO, f"finetune.rollouts={PAID}"], LEAVES + r"finetune\.rollouts\.max_tokens=250 where the model has positions for 256; lower that"),
        (["finetune.validation={metric: {kind: exact}, max_tokens: 250}"], LEAVES + r"finetune\.validation\.max_tokens=250"),
        (["prune.method={kind: magnitude}", f"prune.recovery={{objective: {{kind: grpo}}, rollouts: {PAID}}}"], LEAVES + r"prune\.recovery\.rollouts\.max_tokens=250"),
    ],
    ids=["adapter", "rollouts", "validation", "recovery"],
)  # fmt: skip
def test_what_does_not_fit_is_refused(recipe, folder, settings, message):
    with pytest.raises(ConfigError, match=message):
        look(recipe, folder, *settings)


def test_what_fits_is_not_refused(recipe, folder):
    shorter = PAID.replace("250", "100")
    look(recipe, folder, *GRPO, f"finetune.rollouts={shorter}")
    look(recipe, folder, "initialise.adapter={kind: prompt, tokens: 100}")


def test_a_row_beyond_the_positions_is_named(recipe, folder, tmp_path):
    lines = [{"prompt": f"Shade {n}?", "answer": " ".join(["red"] * (300 if n == 3 else 1))} for n in range(12)]
    (tmp_path / "long.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(DataError, match=r"long\.jsonl:4: 3\d\d tokens, and the model has positions for 256; set prepare\.max_tokens=256"):  # fmt: skip
        look(recipe, folder, f"prepare.source={tmp_path / 'long.jsonl'}", "prepare.test_fraction=2", "prepare.validation_fraction=2")  # fmt: skip


def test_a_training_of_its_own_is_refused_too(recipe, folder, tmp_path, tiny_folder):
    """A search tries other settings than the recipe's, and goes on after a trial whose settings do not fit."""
    assert ConfigError in LOST
    pipeline = open_run(recipe, folder)
    out, adapter = Output(tmp_path, pipeline.run.events), {"kind": "prompt", "tokens": 240}
    with pytest.raises(ConfigError, match="240 of which are the adapter's"):
        begin(Finetune(), pipeline.prepare(), out, str(tiny_folder), "fp32", adapter, 0)
