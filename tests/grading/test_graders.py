"""Every grader keeps the family's contract, and says what it should on answers worked out by hand."""

import json
from dataclasses import replace

import numpy as np
import pytest
import yaml
from graded import example
from sacrebleu.metrics import BLEU, CHRF, TER
from scipy.stats import spearmanr
from sklearn.metrics import mean_squared_error

from tunesmith.base import DataError, MachineError
from tunesmith.base.help import help_of
from tunesmith.data.example import Example
from tunesmith.grading import HEADLINE, AnswerGrader, Grader, Likelihood
from tunesmith.grading.bleu import Bleu
from tunesmith.grading.chrf import Chrf
from tunesmith.grading.exact import Exact
from tunesmith.grading.extras import extra
from tunesmith.grading.pairwise import Pairwise
from tunesmith.grading.perplexity import Perplexity
from tunesmith.grading.rank_correlation import RankCorrelation
from tunesmith.grading.reward_model import RewardModel
from tunesmith.grading.score_error import ScoreError
from tunesmith.grading.statistics import interval
from tunesmith.grading.ter import Ter

GOLDS = [json.dumps({"role": role, "size": size}) for role in ("program", "library") for size in (1, 2, 3)]
EXAMPLES = [replace(example(gold), columns={"score": float(sum(map(ord, gold)) % 7)}) for gold in GOLDS]
MEMBERS = Grader.members()


def test_the_family_has_its_members() -> None:
    kinds = {member.model_fields["kind"].default for member in MEMBERS}
    assert {"exact", "json_fields", "json_valid", "bleu", "chrf", "perplexity"} <= kinds


@pytest.mark.parametrize("member", MEMBERS)
def test_constructs_by_default_and_survives_yaml(member: type[Grader]) -> None:
    grader = member()  # type: ignore[call-arg]
    assert member.model_validate(yaml.safe_load(yaml.safe_dump(grader.model_dump(mode="json")))) == grader
    assert grader.kind in grader.signature
    assert member.model_fields.keys() - {"kind"} <= help_of(member).keys()


@pytest.mark.parametrize("member", [member for member in MEMBERS if issubclass(member, AnswerGrader)])
def test_perfect_answers_get_the_best_and_empty_ones_the_worst(member: type[AnswerGrader]) -> None:
    grader = member()  # type: ignore[call-arg]
    best, worst = grader.figures(EXAMPLES, GOLDS), grader.figures(EXAMPLES, [""] * len(GOLDS))
    assert best.keys() == worst.keys()
    right, wrong = (100.0, 0.0) if grader.better == "higher" else (0.0, 100.0)
    for name in best:
        assert best[name].point == pytest.approx(right)
        assert worst[name].point == wrong
    assert grader.score(GOLDS[0], EXAMPLES[0]).share == pytest.approx(1.0)
    assert grader.score("", EXAMPLES[0]).share == 0.0


@pytest.mark.parametrize("member", [member for member in MEMBERS if member is not RewardModel])
def test_intervals_contain_the_value_and_have_width(member: type[Grader]) -> None:
    grader = member()  # type: ignore[call-arg]
    outputs: list[object] = [*GOLDS[:3], "", *GOLDS[1:3]]
    if grader.reads == "likelihoods":
        outputs = [Likelihood(3.0 * tokens, tokens + 1) for tokens in range(6)]
    if grader.reads == "scores":
        outputs = [[float(number % 4), 1.5] if member is Pairwise else [30.0 + number % 4] for number in range(6)]
    if grader.reads == "chances":
        found = {gold: 0.1 + 0.1 * number for number, gold in enumerate(sorted(GOLDS))}
        outputs = [{"": {**found, GOLDS[number - 1]: 0.9}} for number in range(6)]
    for name, figure in grader.figures(EXAMPLES, outputs).items():
        found = interval(figure, resamples=500)
        assert found.low <= found.value <= found.high
        assert found.low < found.high or name == "by chance"  # shares of classes always come to one


def test_pairs_that_are_scored_alike_are_half_right() -> None:
    assert Pairwise().figures(EXAMPLES[:4], [[2, 1], [1, 2], [3, 3], [0, -1]])["headline"].point == 62.5
    with pytest.raises(DataError, match=r"t:1: 1 answers; pairwise compares"):
        Pairwise().figures(EXAMPLES[:1], [[2.0]])


def test_scores_are_held_against_those_that_people_gave() -> None:
    marks = [1.0, 4.0, 2.0, 2.0, 5.0, 3.0]
    examples = [Example(f"x:{number}", columns={"stars": mark}) for number, mark in enumerate(marks)]
    scores = [[0.5], [3.0], [2.5], [1.0], [9.0], [1.0]]
    error = ScoreError(column="stars").figures(examples, scores)["headline"].point
    assert error == pytest.approx(mean_squared_error(marks, np.ravel(scores)))
    rank = RankCorrelation(column="stars").figures(examples, scores)["headline"]
    assert rank.point == pytest.approx(spearmanr(marks, np.ravel(scores)).statistic)
    assert RankCorrelation(column="stars").figures(examples, [[7.0]] * 6)["headline"].point == 0
    assert RankCorrelation(column="stars").figures(examples, [[-mark] for mark in marks])[
        "headline"
    ].point == pytest.approx(-1)
    with pytest.raises(DataError, match=r"x:0: has no column 'score'; name the field in prepare\.columns"):
        ScoreError().figures(examples, scores)


def test_no_correlation_is_beyond_one() -> None:
    examples = [Example(f"x:{number}", columns={"score": float(number)}) for number in range(8)]
    scores = [[float(number)] for number in (0, 1, 2, 3, 4, 6, 5, 7)]
    found = interval(RankCorrelation().figures(examples, scores)["headline"])
    assert 0.5 < found.low < found.value < found.high == 1.0


def test_exact_states_what_it_forgives() -> None:
    row = example("New  York\n")
    assert Exact().score(" New York ", row).hits == 1
    assert Exact().score("new york", row).hits == 0
    assert Exact(ignore_case=True).score("new york", row).hits == 1
    assert Exact(ignore_blanks=False).score("New York", row).hits == 0
    assert Exact().score("cafe\u0301", example("caf\u00e9")).hits == 1
    assert Exact().score("Boston", row).text == "expected 'New  York\\n'"


def test_bleu_chrf_and_ter_are_sacrebleus_corpus_scores() -> None:
    golds = ["the cat sat on the mat today", "a dog ran through the green park", "nothing at all is the same"]
    answers = ["the cat sat on a mat today", "the dog ran in the park", "nothing is the same at all"]
    rows = [example(gold) for gold in golds]
    assert [Chrf(word_order=count).unit for count in (0, 2)] == ["chrF", "chrF++"]
    pairs = [(Bleu(), BLEU()), (Chrf(), CHRF()), (Chrf(word_order=2), CHRF(word_order=2)), (Ter(), TER())]
    pairs += [(Ter(punctuation=False, case_sensitive=True), TER(no_punct=True, case_sensitive=True))]
    for grader, metric in pairs:
        figure = grader.figures(rows, answers)[HEADLINE]
        assert figure.point == pytest.approx(metric.corpus_score(answers, [golds]).score)
        twice = figure.value(np.stack([figure.statistics.sum(axis=0), figure.statistics[:2].sum(axis=0)]))
        assert twice[1] == pytest.approx(metric.corpus_score(answers[:2], [golds[:2]]).score)
        assert f"{metric.get_signature().format()}" in grader.signature


def test_ter_is_better_when_lower_has_no_worst_and_pays_for_what_is_right() -> None:
    rows = [example("one two three four"), example("five")]
    figure = Ter().figures(rows, ["one two three", "six seven eight"])[HEADLINE]
    assert (Ter.better, figure.top) == ("lower", None)
    assert figure.point == pytest.approx(100 * (1 + 3) / 5)
    found = interval(figure)
    assert found.low <= figure.point <= found.high
    assert Ter().worth(["one two three", "six seven eight"], rows) == [
        0.75,
        0.0,
    ]  # three edits of a word are not worse than one


def test_perplexity_is_over_tokens_not_over_rows() -> None:
    figure = Perplexity().figures(EXAMPLES[:2], [Likelihood(3.0, 1), Likelihood(3.0, 5)])[HEADLINE]
    assert figure.point == pytest.approx(np.exp(1.0))
    with pytest.raises(DataError, match="no supervised token"):
        Perplexity().figures(EXAMPLES[:1], [Likelihood(0.0, 0)])


def test_a_missing_package_is_named_with_the_command_that_brings_it() -> None:
    with pytest.raises(MachineError, match=r"'no_such_package' is not installed; run: pip install .*\[eval\]"):
        extra("no_such_package.part")
