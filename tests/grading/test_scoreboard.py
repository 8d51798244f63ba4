"""The scoreboard is a JSON value with the figures a reader needs, and the gate decides by them."""

import json
import re
from typing import Any

import numpy as np
import pytest
import yaml

from tunesmith.base import ConfigError, DataError
from tunesmith.base.help import help_of
from tunesmith.data.example import Example
from tunesmith.grading import Likelihood
from tunesmith.grading.exact import Exact
from tunesmith.grading.gate import Gate
from tunesmith.grading.json_fields import JsonFields
from tunesmith.grading.perplexity import Perplexity
from tunesmith.grading.scoreboard import scoreboard

ROWS = 120


def examples() -> list[Example]:
    answer = ({"role": "assistant", "content": '{"role": "program"}'},)
    return [
        Example(
            f"test.jsonl:{row}",
            ({"role": "user", "content": "?"},),
            (answer,),
            meta={"source": "abc"[row % 3], "id": row},
        )
        for row in range(ROWS)
    ]


def answers(share: float, seed: int) -> list[str]:
    right = np.random.default_rng(seed).random(ROWS) < share
    return [json.dumps({"role": "program" if hit else "library"}) for hit in right]


def losses(rise: float) -> list[Likelihood]:
    generator = np.random.default_rng(0)
    return [Likelihood(40 * (2.0 + rise + 0.1 * generator.standard_normal()), 40) for _ in range(ROWS)]


def board(tuned: float = 0.9, rise: float = 0.0, **settings: Any) -> dict[str, Any]:
    systems = {"base": answers(0.3, 1), "svm": answers(0.7, 2), "tuned": answers(tuned, 3)}
    likelihoods = {"base": losses(0.0), "tuned": losses(rise)}
    graders = [JsonFields(), Exact(), Perplexity()]
    return scoreboard(examples(), systems, graders, likelihoods=likelihoods, **settings)


def test_it_holds_every_figure_and_is_json() -> None:
    found = board(slices=("source", "id", "absent"))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert (found["rows"], found["systems"], found["seed"]) == (ROWS, ["base", "svm", "tuned"], 0)
    fields = found["graders"]["json_fields"]
    assert (fields["unit"], fields["better"], fields["headline"]) == ("% of fields", "higher", True)
    assert fields["systems"].keys() == {"base", "svm", "tuned"}
    assert fields["parts"].keys() == {"role", "valid JSON", "role macro F1"}
    assert fields["parts"]["role"]["n"] == ROWS
    assert fields["slices"].keys() == {"source=a", "source=b", "source=c"}
    assert fields["slices"]["source=a"]["n"] == ROWS // 3
    assert fields["differences"].keys() == {"tuned - base", "tuned - svm"}
    gain, systems = fields["differences"]["tuned - base"], fields["systems"]
    assert gain["value"] == pytest.approx(systems["tuned"]["value"] - systems["base"]["value"])
    assert gain["low"] < gain["value"] < gain["high"]
    assert gain["p"] < 0.001
    assert 5 < gain["detectable"] < 25
    assert found["graders"]["perplexity"]["systems"].keys() == {"base", "tuned"}
    assert found["graders"]["perplexity"]["differences"]["tuned - base"]["relative"]["n"] == ROWS


def test_slices_add_up_to_the_whole() -> None:
    fields = board(slices=("source",))["graders"]["json_fields"]
    mean = np.mean([entry["systems"]["tuned"]["value"] for entry in fields["slices"].values()])
    assert mean == pytest.approx(fields["systems"]["tuned"]["value"])


def test_against_and_subject_choose_the_differences() -> None:
    found = board(subject="svm", against=("base",))
    assert found["graders"]["exact"]["differences"].keys() == {"svm - base"}


def test_what_cannot_be_compared_is_refused_in_one_line() -> None:
    rows = examples()
    with pytest.raises(DataError, match=r"'tuned' has 1 outputs for 120 rows"):
        scoreboard(rows, {"tuned": ["a"]}, [Exact()])
    with pytest.raises(DataError, match="no held-out rows"):
        scoreboard([], {"tuned": []}, [Exact()])
    with pytest.raises(ConfigError, match="'exact' is named twice"):
        scoreboard(rows, {"tuned": ["a"] * ROWS}, [Exact(), Exact(ignore_case=True)])
    with pytest.raises(ConfigError, match="'perplexity' reads likelihoods, and no system has any"):
        scoreboard(rows, {"tuned": ["a"] * ROWS}, [Perplexity()])
    with pytest.raises(ConfigError, match="system 'bass' has no answers; there are tuned"):
        scoreboard(rows, {"tuned": ["a"] * ROWS}, [Exact()], against=("bass",))


def test_the_gate_promotes_what_is_better_and_no_worse_elsewhere() -> None:
    found = board(0.9, rise=0.01)
    decision = Gate(beat=("base", "svm"))(found, found)
    assert decision["promote"], decision["reasons"]
    assert [reason.split(":")[0] for reason in decision["reasons"]] == [
        "tuned beats base",
        "tuned beats svm",
        "tuned keeps its general ability",
    ]
    assert "% of fields, difference +" in decision["reasons"][0]
    assert f"{ROWS} rows" in decision["reasons"][0]


@pytest.mark.parametrize(
    ("tuned", "rise", "gate", "reason"),
    [
        (0.72, 0.0, Gate(beat=("svm",)), "tuned is not shown to beat svm: json_fields"),
        (0.1, 0.0, Gate(), "tuned is not shown to beat base"),
        (0.9, 0.10, Gate(), "tuned is not shown to keep its general ability"),
        (0.9, 0.0, Gate(beat=("gpt",)), "tuned was not compared with gpt by json_fields"),
        (0.9, 0.0, Gate(rows=500), "json_fields rests on 120 rows; a decision needs 500"),
        (0.9, 0.02, Gate(margin=1.0), "the margin is 1 %"),
    ],
)
def test_the_gate_refuses_what_is_not_shown(tuned: float, rise: float, gate: Gate, reason: str) -> None:
    found = board(tuned, rise)
    decision = gate(found, found)
    assert not decision["promote"]
    assert any(reason in sentence for sentence in decision["reasons"]), decision["reasons"]


def test_the_gate_asks_for_the_interval_not_for_the_value() -> None:
    right, wrong = '{"role": "program"}', '{"role": "library"}'
    systems = {"base": [right] * 60 + [wrong] * 60, "tuned": [right] * 50 + [wrong] * 10 + [right] * 13 + [wrong] * 47}
    noise = np.random.default_rng(1).normal(0.04, 0.3, ROWS)
    likelihoods = {"base": losses(0.0), "tuned": [Likelihood(80 + 40 * more, 40) for more in noise]}
    found = scoreboard(examples(), systems, [Exact(), Perplexity()], likelihoods=likelihoods)
    rise = found["graders"]["perplexity"]["differences"]["tuned - base"]["relative"]
    assert found["graders"]["exact"]["differences"]["tuned - base"]["value"] > 0
    assert not Gate(margin=None)(found)["promote"]
    assert rise["value"] + 1 < rise["high"]
    beaten = Gate(beat=(), margin=rise["value"] + 1)
    assert not beaten(found, found)["promote"]
    assert Gate(beat=(), margin=rise["high"] + 1)(found, found)["promote"]


def test_the_gate_without_general_rows() -> None:
    found = board()
    assert not Gate()(found)["promote"]
    assert Gate(margin=None)(found)["promote"]


def test_the_gate_on_a_figure_where_lower_is_better() -> None:
    better = Gate(task="perplexity", margin=None)(board(rise=-0.2))
    assert better["promote"]
    assert re.match(r"tuned beats base: perplexity \d\.\d\d against \d\.\d\d perplexity, difference -\d\.\d\d \(95 % interval -\d\.\d\d to", better["reasons"][0])  # fmt: skip
    assert not Gate(task="perplexity", margin=None)(board(rise=0.2))["promote"]
    with pytest.raises(ConfigError, match=r"gate\.task: 'chrf' is not on the scoreboard"):
        Gate(task="chrf")(board())


def test_the_gate_promotes_nothing_by_one_text() -> None:
    likelihoods = {"base": [Likelihood(30.0, 10)], "tuned": [Likelihood(10.0, 10)]}
    task = scoreboard(examples()[:1], {}, [Perplexity()], likelihoods=likelihoods)
    assert json.dumps(task, allow_nan=False)
    found = Gate(rows=1)(task, task)
    assert not found["promote"]
    assert "difference -17.37 (95 % interval unknown, 1 rows)" in found["reasons"][0]
    assert "tuned is not shown to keep its general ability" in found["reasons"][1]


def test_the_gate_survives_yaml_and_documents_its_fields() -> None:
    gate = Gate(task="exact", beat=("base", "svm"), margin=None)
    assert Gate.model_validate(yaml.safe_load(yaml.safe_dump(gate.model_dump(mode="json")))) == gate
    assert Gate.model_fields.keys() == help_of(Gate).keys()
