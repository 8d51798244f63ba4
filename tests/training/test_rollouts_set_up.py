"""What is settled before the first rollout: settings that make no sense are refused, the largest step is imagined, and what begins elsewhere is held to its base."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from tunesmith.base import ConfigError, DataError, Output
from tunesmith.base.events import Events
from tunesmith.base.spec import validate
from tunesmith.data.batch import Batch
from tunesmith.data.example import Example
from tunesmith.methods.adapters.prefix import Prefix
from tunesmith.methods.adapters.prompt import Prompt
from tunesmith.methods.objectives.base import START, TAUGHT_LOGP, Teaching
from tunesmith.methods.objectives.grpo import GRPO
from tunesmith.stages.finetune import Finetune, set_up
from tunesmith.training.others import Split
from tunesmith.training.reference import with_references, with_teacher, with_token_logps
from tunesmith.training.rollouts import Rollouts, imagined

PAID = {"rewards": [{"grader": {"kind": "exact"}}]}


def test_what_is_imagined_is_as_large_as_it_can_get(rows):
    spec = Rollouts(**PAID, samples=3, max_tokens=11)
    batch = Batch.of(imagined(rows[:2], spec))
    assert batch.supervised == 2 * 3 * 11
    assert batch.forest.tokens_N.numel() >= 2 * 3 * 11
    assert torch.isfinite(GRPO(beta=0.1).advantages(batch)).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": {"kind": "grpo"}}, "say what they earn"),
        ({"rollouts": PAID}, "learns from given answers"),
        ({"objective": {"kind": "grpo"}, "rollouts": {"rewards": []}}, "rewards"),
        ({"most_tokens": 900}, "rates must not depend on how many steps"),
        ({"most_tokens": 900, "schedule": {"shape": "constant"}}, "rates must not depend on how many steps"),
        (
            {"objective": {"kind": "grpo"}, "rollouts": {"rewards": [{"grader": {"kind": "perplexity"}}]}},
            "one answer by itself",
        ),
        ({"objective": {"kind": "rloo"}, "rollouts": {**PAID, "samples": 1}}, "set rollouts.samples to 2 or more"),
        (
            {"objective": {"kind": "grpo"}, "rollouts": PAID, "validation": {"metric": "loss"}},
            "says nothing about answers",
        ),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        validate(Finetune, settings, "recipe.yaml")


def test_plain_text_asks_nothing(build, rows):
    tune = Finetune(objective=GRPO(), rollouts=PAID)
    with pytest.raises(DataError, match=r"notes\.txt:3: plain text has no prompt to answer"):
        tune.source(build(), rows[:1], [Example("notes.txt:3", text="Once.")], 0)


@pytest.mark.parametrize("adapter", [Prompt(tokens=3), Prefix(tokens=3)], ids=lambda one: one.kind)
def test_what_begins_elsewhere_than_its_base_is_held_to_the_base(build, rows, tmp_path, adapter):
    """Virtual tokens begin as random ones; references, a teacher without a name and the start of rollouts are what the base says."""
    loaded, few = build("llama", seed=2), rows[:3]
    pair = [replace(row, sequences=(row.sequences[0], row.sequences[0])) for row in few]
    wanted = with_references(loaded, pair, 3)
    taught = with_teacher(loaded, few, Teaching(None, 4, 1.0), 3, len(loaded.tokenizer))
    told = with_token_logps(loaded, few, START, 3)
    adapter.attach(loaded, 0)
    nothing, out = Split([], []), Output(tmp_path, Events(tmp_path / "events.jsonl"))

    def held(objective, given, **more):
        spec = Finetune(objective=objective, batch=3, **more)
        return set_up(spec, loaded, adapter, Split(given, []), nothing, out, 0).data

    for ours, expected in zip(held({"kind": "dpo"}, pair).rows, wanted, strict=True):
        assert ours.columns == pytest.approx(expected.columns, abs=1e-4)
    for ours, expected in zip(held({"kind": "distill", "top": 4}, few).rows, taught, strict=True):
        np.testing.assert_allclose(
            ours.sequences[0].columns[TAUGHT_LOGP], expected.sequences[0].columns[TAUGHT_LOGP], atol=1e-4
        )
    data = held({"kind": "grpo", "beta": 0.1}, few, rollouts={**PAID, "max_tokens": 4})
    for ours, expected in zip(data._measured(few), told, strict=True):
        np.testing.assert_allclose(ours.sequences[0].columns[START], expected.sequences[0].columns[START], atol=1e-4)
    assert len(loaded.prefix) == 3
