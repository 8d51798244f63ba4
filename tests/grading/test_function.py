"""Functions of the user's own as graders: which are known, what they may say, and when what depends on them is computed again."""

import pytest

from tunesmith.base import ConfigError, DataError
from tunesmith.base.spec import validate
from tunesmith.data.example import Example
from tunesmith.grading import function as functions
from tunesmith.grading.function import Function, code_files, grader, load_code
from tunesmith.grading.scoreboard import scoreboard
from tunesmith.stages.evaluate import Evaluate
from tunesmith.training.rollouts import Reward

EXAMPLE = Example("rows.jsonl:1", answers=(({"role": "assistant", "content": "red"},),))
CODE = """
from math import floor as imported

def brief(answer, example):
    return max(0.0, 1 - len(answer) / 10)

def same(answer, example):
    return answer == example.gold

def wild(answer, example):
    return 1 / (len(answer) - 3)

def _helper(answer, example):
    return 1.0
"""


@pytest.fixture
def code(tmp_path, monkeypatch):
    monkeypatch.setattr(functions, "_known", {})
    path = tmp_path / "judges.py"
    path.write_text(CODE)
    return path


def test_functions_of_a_file_judge_and_pay(code):
    load_code(code)
    assert code_files() == [code]
    brief, same = (
        validate(Reward, {"grader": {"kind": "function", "name": name}}, "r").grader for name in ("brief", "same")
    )
    assert brief.worth(["red", "x" * 20], [EXAMPLE, EXAMPLE]) == [0.7, 0.0]
    assert same.figures([EXAMPLE, EXAMPLE], ["red", "green"])["headline"].point == 50.0
    assert brief.inputs == (code,)
    signature = brief.signature
    code.write_text(CODE + "# another\n")
    assert brief.signature != signature


def test_several_judge_side_by_side_under_their_names(code):
    load_code(code)
    graders = validate(
        Evaluate, {"graders": [{"kind": "function", "name": name} for name in ("same", "brief")], "gate": {"task": "brief"}}, "r"
    )  # fmt: skip
    rows = [Example(f"rows.jsonl:{number}", answers=EXAMPLE.answers) for number in range(40)]
    board = scoreboard(rows, {"base": ["green"] * 40, "tuned": ["red"] * 40}, graders.graders)
    points = {name: block["systems"]["tuned"]["value"] for name, block in board["graders"].items()}
    assert points == {"same": 100.0, "brief": pytest.approx(70.0)}
    assert [grader.called for grader in graders.judges] == ["brief", "same"]
    assert "brief" in graders.gate(board)["reasons"][0]
    with pytest.raises(ConfigError, match=r"gate\.task: 'function' is none of the graders; there are same"):
        validate(Evaluate, {"graders": [{"kind": "function", "name": "same"}], "gate": {"task": "function"}}, "r")
    with pytest.raises(ConfigError, match="same is named twice"):
        validate(Evaluate, {"graders": [{"kind": "function", "name": "same"}] * 2}, "r")


@pytest.mark.parametrize("name", ["_helper", "imported", "absent"])
def test_what_is_not_given_is_refused_when_it_is_asked_for(code, name):
    """Not when a recipe that names it is read: a run can be shown without its code."""
    load_code(code)
    one = Function(name=name)
    with pytest.raises(ConfigError, match=f"nothing says what '{name}' is; give its file: tunesmith --code"):
        one.inputs  # noqa: B018


@pytest.mark.parametrize(
    ("answer", "said"), [("abc", "wild fails on it: ZeroDivisionError"), ("ab", "says -1, which is not from 0 to 1")]
)
def test_what_a_function_may_not_say_names_the_row(code, answer, said):
    load_code(code)
    with pytest.raises(DataError, match=rf"rows\.jsonl:1: judges\.py: wild {said.removeprefix('wild ')}"):
        Function(name="wild").score(answer, EXAMPLE)


@pytest.mark.parametrize(
    ("text", "said"), [("def f(:", "SyntaxError"), ("1 / 0", "ZeroDivisionError"), ("x = 1", "defines no function")]
)
def test_a_file_that_cannot_be_used_is_named(code, text, said):
    code.write_text(text)
    with pytest.raises(ConfigError, match=rf"--code .*judges\.py: .*{said}"):
        load_code(code)
    with pytest.raises(ConfigError, match="no such file"):
        load_code(code.with_name("absent.py"))


def test_a_decorated_function_is_of_the_file_that_defines_it(code):
    code.write_text(
        "from __future__ import annotations\nimport dataclasses, functools\n\n"
        "@dataclasses.dataclass\nclass Limit:\n    most: int = 10\n\n"
        "@functools.lru_cache\ndef helper():\n    return Limit()\n\n"
        "def patient(f):\n    return functools.wraps(f)(lambda *given: f(*given))\n\n@patient\n"
        "def brief(answer, example):\n    return float(len(answer) < helper().most)\n"
    )
    load_code(code)
    assert Function(name="brief").inputs == (code,)
    assert Function(name="brief").worth(["red", "x" * 20], [EXAMPLE, EXAMPLE]) == [1.0, 0.0]


def test_one_name_in_two_files_is_refused(code):
    load_code(code)
    load_code(code)
    other = code.with_name("others.py")
    other.write_text(CODE)
    with pytest.raises(ConfigError, match=r"'brief': is defined in .*judges\.py and in .*others\.py"):
        load_code(other)


def test_a_function_without_a_file_is_refused(code):
    scope = {}
    exec("def made(answer, example): return 1.0", scope)
    with pytest.raises(ConfigError, match="'made': is in no file"):
        grader(scope["made"])


def test_a_function_of_a_program_is_known_by_its_name(code):
    @grader
    def here(answer, example):
        return 0.25

    assert Function(name="here").score("x", EXAMPLE).share == 0.25
    assert here("x", EXAMPLE) == 0.25
