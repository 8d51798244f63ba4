"""A function of the user's own pays for answers and judges them, from the command line on."""

import json
from pathlib import Path

import pytest

from tunesmith.grading import function as functions
from tunesmith.stages.validation import Judge, Validation

CODE = "def brief(answer, example):\n    return max(0.0, 1 - len(answer) / 100)\n"


@pytest.fixture(autouse=True)
def known(monkeypatch):
    monkeypatch.setattr(functions, "_known", {})


@pytest.fixture
def recipe(task, tmp_path):
    (tmp_path / "judges.py").write_text(CODE)
    brief = {"kind": "function", "name": "brief"}
    rollouts = {"rewards": [{"grader": brief}], "samples": 2, "max_tokens": 4}
    return task(
        finetune={"objective": {"kind": "rloo"}, "rollouts": rollouts, "epochs": 0.2, "batch": 4},
        evaluate={
            "graders": [brief],
            "max_tokens": 4,
            "general": None,
            "gate": {"margin": None, "beat": []},
            "baselines": False,
        },
    )


def states(run: Path) -> dict[str, str]:
    return {name: state["artifact"] for name, state in json.loads((run / "stages.json").read_text()).items()}


def test_it_pays_and_judges_and_a_changed_file_is_noticed(tunesmith, recipe, tmp_path):
    code, _, said = tunesmith("evaluate", recipe)
    assert code == 2
    assert "nothing says what 'brief' is" in said
    assert not list(tmp_path.glob("runs/*/finetune-*")), "found out after training"
    assert tunesmith("--code", "judges.py", "evaluate", recipe)[0] in (0, 1)
    before = states(tmp_path / "runs" / "task")
    functions._known.clear()
    for command in ("show", "report"):  # without the code
        code, _, said = tunesmith(command, "runs/task")
        assert code == 0, said
    (tmp_path / "judges.py").write_text(CODE.replace("100", "50"))
    code, _, said = tunesmith("--code", "judges.py", "evaluate", recipe)
    assert code in (0, 1), said
    after = states(tmp_path / "runs" / "task")
    assert {name for name in before if before[name] != after[name]} == {"finetune", "prune", "evaluate"}


def test_what_a_run_is_watched_by_goes_by_the_functions_name():
    watched = Validation.model_validate({"metric": {"kind": "function", "name": "brief"}})
    assert Judge(watched, None, None, (), (), 1).metric == "brief"
