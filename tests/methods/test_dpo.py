import json
import math

import pytest
import torch

import tunesmith
from tunesmith.base import DataError, Run
from tunesmith.base.files import read_json
from tunesmith.data.batch import Batch
from tunesmith.methods.adapters import trainable
from tunesmith.methods.adapters.lora import LoRA
from tunesmith.methods.objectives.dpo import DPO
from tunesmith.methods.objectives.sft import SFT
from tunesmith.methods.optimizers.adamw import AdamW
from tunesmith.models.forward import padded_logps
from tunesmith.training.batches import Dataset
from tunesmith.training.loop import train
from tunesmith.training.reference import with_references


@pytest.fixture
def tuned(build):
    loaded = build("llama", spread=0.2, vocab_size=97)
    LoRA(rank=4).attach(loaded, 0)
    return loaded


@pytest.fixture
def pairs(tuned, random_rows):
    return with_references(tuned, random_rows(6, answers=2), 4)


def test_references_are_what_the_model_says_of_each_answer_alone(tuned, pairs):
    for row in pairs:
        for answer, sequence in enumerate(row.sequences):
            alone = Batch.of([type(row)(row.origin, (sequence,))])
            expected = float(padded_logps(tuned, alone).sum().detach())
            assert row.columns[f"reference_{answer}"] == pytest.approx(expected, abs=1e-4)


def test_it_starts_at_log_two_and_pulls_the_answers_apart(tuned, pairs):
    batch = Batch.of(pairs)
    loss = DPO()(tuned, batch)
    assert float(loss.total.detach()) / len(pairs) == pytest.approx(math.log(2), abs=1e-6)
    assert abs(float(loss.stats["margin"])) < 1e-3
    loss.total.backward()
    with torch.no_grad():
        for weight in trainable(tuned.model).values():
            weight -= 0.05 * weight.grad
    after = DPO()(tuned, batch)
    assert after.total < loss.total
    assert float(after.stats["chosen_score"]) > float(after.stats["rejected_score"])


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_loss_and_gradient_are_those_of_the_formula(tuned, pairs, smoothing):
    """Written anew from the paper's equation 7, over padded rows, in a model that has moved."""
    with torch.no_grad():
        for name, weight in trainable(tuned.model).items():
            if "lora_B" in name:
                weight.normal_(0, 0.1)
    objective, batch = DPO(beta=0.3, label_smoothing=smoothing), Batch.of(pairs)
    found = objective(tuned, batch).total
    found.backward()
    gradient = {name: weight.grad.clone() for name, weight in trainable(tuned.model).items()}
    tuned.model.zero_grad()
    expected = torch.zeros(())
    for row in pairs:
        chosen, rejected = (
            padded_logps(tuned, Batch.of([type(row)("x", (sequence,))])).sum() - row.columns[f"reference_{answer}"]
            for answer, sequence in enumerate(row.sequences)
        )
        odds = 0.3 * (chosen - rejected)
        expected = (
            expected - (1 - smoothing) * torch.log(torch.sigmoid(odds)) - smoothing * torch.log(torch.sigmoid(-odds))
        )
    expected.backward()
    assert float(found.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    for name, weight in trainable(tuned.model).items():
        assert (weight.grad - gradient[name]).norm() <= 1e-4 * weight.grad.norm() + 1e-6, name


def test_training_makes_the_chosen_answers_the_likelier_ones(tuned, pairs):
    data = Dataset(pairs, 6, 6, 40, 0)
    optimizer = AdamW(learning_rate=5e-3).build(trainable(tuned.model))
    steps = list(train(tuned, DPO(), data.from_step(0), optimizer, lambda _: 1.0, seed=0))
    assert steps[-1].stats["accuracy"] == 1.0
    assert steps[-1].loss < 0.6 < steps[0].loss


def test_rows_of_another_shape_are_refused_by_name(random_rows):
    with pytest.raises(DataError, match=r"random:1: 1 answers, objective dpo learns from 2"):
        DPO().check(random_rows(2))
    with pytest.raises(DataError, match=r"random:1: 2 answers, objective sft learns from 1"):
        SFT().check(random_rows(2, answers=2))


def test_a_run_learns_a_preference(tiny_folder, tmp_path):
    lines = [{"prompt": f"Say {n}.", "chosen": "yes", "rejected": "no"} for n in range(40)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    recipe = {
        "model": str(tiny_folder),
        "precision": "fp32",
        "prepare": {"source": "pairs.jsonl", "test_fraction": 8, "validation_fraction": 4, "cleaners": []},
        "finetune": {"objective": {"kind": "dpo"}, "epochs": 2, "batch": 8, "optimizer": {"learning_rate": 0.01}},
        "evaluate": {"graders": [{"kind": "exact"}], "max_tokens": 4, "gate": {"margin": None, "beat": []}},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(recipe))
    found = tunesmith.finetune(tmp_path / "recipe.yaml", folder=tmp_path / "run")
    events = list(Run(tmp_path / "run").events.read("step"))
    assert {"accuracy", "margin", "chosen_score", "rejected_score"} <= events[0].keys()
    assert events[-1]["margin"] > events[0]["margin"]
    assert all(claim["holds"] for claim in read_json(found / "proof.json")["claims"])
