"""The report says what the run's files say, whatever state the run is in, and nothing in it comes from elsewhere."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from synthetic_run import EVIL, RIGHT, ROWS, Free, run_until, search, step

from tunesmith.base import Artifact, Interrupted, ModelError, Output, ProofError, Run, Spec, Stage
from tunesmith.base.files import write_json
from tunesmith.base.proof import Proof
from tunesmith.data.example import Example
from tunesmith.grading.json_fields import JsonFields
from tunesmith.stages.report import write
from tunesmith.stages.report.answers import KINDS, card, rows_of
from tunesmith.stages.report.course import followed
from tunesmith.stages.report.source import Source


class Reader(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(page)
        self.text = re.sub(r"\s+", " ", " ".join(self.words))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def read(run: Run) -> Reader:
    path = write(run)
    assert path == run.path / "report.html"
    assert path.stat().st_size < 1_000_000
    return Reader(path.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_until(tmp_path_factory.mktemp("report") / "my-run", "evaluate", {"margin": None})


@pytest.fixture(scope="module")
def page(whole: Run) -> Reader:
    write_json(whole.path / "plan.json", {"estimate": {"peak_bytes": 3_145_728_000, "seconds": 10.0, "tokens": 20_000}})
    return read(whole)


def test_the_verdict_names_figure_difference_and_interval(page: Reader, whole: Run) -> None:
    block = json.loads((whole.artifact("evaluate") / "results.json").read_text())["task"]["graders"]["json_fields"]
    found = block["differences"]["tuned - svm"]
    assert found["value"] == pytest.approx(15.0)  # 18 rows more of 60, in one of two fields
    expected = f"Tuned gets 95.0 % of the fields right, 15.0 points more than the SVM (95 % interval +{found['low']:.1f} to +{found['high']:.1f})."
    assert expected in page.text
    assert "✓ Promoted" in page.text
    assert "tuned beats base: json_fields 95.0 against" in page.text


def test_figures_in_words_are_no_part_of_a_picture(page: Reader) -> None:
    """What is an image to a screen reader has no parts; the figures of a forest stand nowhere else."""
    drawn = [about for tag, about in page.tags if tag == "figure" and about.get("class") == "forest"]
    assert [about["role"] for about in drawn] == ["group"] * len(drawn) != []


def test_every_part_system_and_slice_has_its_figure(page: Reader) -> None:
    for system, right in RIGHT.items():
        share = 100 * (right + ROWS - (system == "base")) / (2 * ROWS)
        assert f"{system} {share:.1f} " in page.text
    assert "role 60 90.0" in page.text
    assert "shop=a 30" in page.text
    assert "detectable" in page.text


def test_steps_that_a_resumed_run_repeated_count_once(page: Reader, whole: Run) -> None:
    _, steps, judged = followed(Source(whole))
    assert len(steps) == 40
    assert steps[20]["loss"] == 9.99
    assert steps[21]["loss"] == pytest.approx(2 / 21)
    assert judged.keys() == {30, 40}
    assert "The weights of step 30 were kept" in page.text


def test_validation_beyond_the_step_a_run_went_back_to_is_forgotten(tmp_path: Path) -> None:
    def restarted(spec: Spec, *parents: Artifact, out: Output, seed: int) -> None:
        step(out, 1, 3.0)
        step(out, 2, 2.0)
        out.events.write("validation", step=2, metric="loss", value=0.1, best=True)
        step(out, 1, 1.0)
        raise Interrupted(15)

    run = Run(tmp_path / "run")
    with pytest.raises(Interrupted):
        run = run_until(run.path, "finetune", finetune=restarted)
    _, steps, judged = followed(Source(run))
    assert [(number, found["loss"]) for number, found in steps.items()] == [(1, 1.0)]
    assert not judged


def test_rows_before_and_after_are_counted_and_drawn_from_every_kind(page: Reader) -> None:
    # few-shot is right on rows 1-30, tuned on 7-60
    for count, kind in ((30, "better"), (6, "worse"), (0, "wrong"), (24, "right")):
        assert f"{count} {KINDS[kind]}" in page.text
    assert "tuned against few-shot" in page.text
    cards = [attributes["class"] or "" for tag, attributes in page.tags if tag == "article"]
    assert len(cards) == 12
    assert sum("worse" in card for card in cards) >= 4
    assert sum("right" in card for card in cards) >= 2


def test_what_data_says_is_never_markup_and_nothing_is_loaded(page: Reader, whole: Run) -> None:
    assert EVIL in page.text  # shown as text
    assert not {tag for tag, _ in page.tags} & {"script", "link", "img", "iframe", "object", "base", "form"}
    addresses = [
        value
        for _, attributes in page.tags
        for name, value in attributes.items()
        if name in ("href", "src", "action", "data", "xlink:href")
    ]
    assert addresses
    assert all(value and value.startswith("#") for value in addresses)
    assert not re.search(r"url\(|@import|https?://", (whole.path / "report.html").read_text(encoding="utf-8"))


def test_every_link_leads_to_a_section(page: Reader) -> None:
    ids = [attributes["id"] for _, attributes in page.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    assert {f"#{name}" for name in ids} >= {attributes["href"] for tag, attributes in page.tags if tag == "a"}


def test_data_method_proof_lineage_and_cost(page: Reader, whole: Run) -> None:
    for said in (
        "100 rows came in: 97 used, 0 cut off, 3 left out",
        "exact duplicate 3",
        "Test rows are the first 60 rows of a file of their own, test.jsonl.",
        "Validation rows are 20 % of the source, taken by a hash of what they say (seed 7).",
        "dropped 3, copies in test 0, conflicts 1",
        "lora (rank 16)",
        "adamw (learning rate 0.001)",
        "134,515,008",
        "packed loss = padded loss ✓ packed 2.666, padded 2.666, tolerance 0.02",
        "peak memory 3.15 GB 1.57 GB 0.50",
        "time of the training steps 10.0 s 20.0 s 2.00",
        "energy is not measured. A stage that was interrupted counts its earlier attempts too",
        whole.artifact("finetune").path.name,
        whole.artifact("finetune").id[:12],
    ):
        assert said in page.text


def test_answers_to_some_of_the_test_rows_are_judged_by_their_own(tmp_path: Path) -> None:
    run = run_until(tmp_path / "run", "evaluate")
    (path,) = run.path.glob("evaluate-*/answers.jsonl")
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    chosen = [
        {**lines[place], "answers": dict.fromkeys(("base", "tuned"), lines[place]["gold"])} for place in (40, 3, 17)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in chosen))
    rows = rows_of(Artifact(next(run.path.glob("prepare-*")), {}), Artifact(path.parent, {}))
    assert [JsonFields().score(row["answers"]["tuned"], row["example"]).share for row in rows] == [1.0, 1.0, 1.0]
    assert [row["example"].gold for row in rows] == [row["gold"] for row in rows]


def test_fields_may_be_called_as_figures_are(tmp_path: Path) -> None:
    gold = {"headline": "x", "valid JSON": "y"}
    example = Example(
        "a:1", ({"role": "user", "content": "?"},), (({"role": "assistant", "content": json.dumps(gold)},),)
    )
    said = {"base": json.dumps({**gold, "valid JSON": "z"}), "tuned": json.dumps(gold)}
    scores = {name: JsonFields().score(answer, example) for name, answer in said.items()}
    shown = card(
        {"origin": "a:1", "kind": "better", "prompt": "?", "gold": example.gold, "answers": said, "scores": scores},
        JsonFields(),
    )
    marks = {
        field["name"]: {name: each["right"] for name, each in field["systems"].items()} for field in shown["fields"]
    }
    assert marks == {"headline": {"base": True, "tuned": True}, "valid JSON": {"base": False, "tuned": True}}


def test_answers_without_fields_are_marked_as_a_whole(tmp_path: Path) -> None:
    found = read(run_until(tmp_path / "run", "evaluate", graders=[{"kind": "perplexity"}, {"kind": "exact"}]))
    assert "judged by exact" in found.text
    assert f"few-shot ✗ wrong {json.dumps({'role': EVIL, 'language': 'l'})[:12]}" in found.text
    assert "tuned ✓ right" in found.text
    text = read(run_until(tmp_path / "other", "evaluate", graders=[{"kind": "perplexity"}])).text
    assert "None of the graders judges one answer by itself" in text


def test_the_recipe_is_shown_and_stands_in_for_stages_to_come(tmp_path: Path) -> None:
    run = run_until(tmp_path / "run", "prepare")
    (run.path / "resolved.yaml").write_text(
        "model: smollm2-135m\nfinetune: {epochs: 3.5, objective: {kind: sft}}  # <b>\n"
    )
    found = read(run)
    assert "epochs 3.5 objective sft" in found.text
    assert "# <b>" in found.text


def test_a_run_that_the_gate_refused_says_why(tmp_path: Path) -> None:
    text = read(run_until(tmp_path / "run", "evaluate", {"beat": ("gpt",)})).text
    assert "✗ Not promoted" in text
    assert "tuned was not compared with gpt by json_fields" in text


@pytest.mark.parametrize("last", ["prepare", "initialise", "search", "finetune"])
def test_an_unfinished_run_has_a_report_of_what_is_there(tmp_path: Path, last: str) -> None:
    text = read(run_until(tmp_path / "run", last)).text
    assert "There is no result yet." in text
    assert "has not been started" in text
    assert "Not there yet: the model has not been evaluated." in text
    assert ("40 of 40 steps" in text) == (last == "finetune")


def test_an_empty_folder_has_a_report(tmp_path: Path) -> None:
    assert "Stage prepare has not been started" in read(Run(tmp_path)).text


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ModelError(f"loss is not finite {EVIL}"), "Stage finetune failed. 1 of 40 steps are done."),
        (Interrupted(2), "Stage finetune was interrupted."),
    ],
)
def test_a_failed_or_interrupted_run_says_where(tmp_path: Path, error: Exception, said: str) -> None:
    def broken(spec: Spec, *parents: Artifact, out: Output, seed: int) -> None:
        step(out, 1, float("nan"))
        raise error

    with pytest.raises(type(error)):
        run_until(tmp_path / "run", "finetune", finetune=broken)
    found = read(Run(tmp_path / "run"))
    assert said in found.text
    assert "script" not in {tag for tag, _ in found.tags}
    assert str(error) in found.text


@pytest.mark.parametrize(
    ("stage", "steps", "said", "unsaid"),
    [
        ("initialise", 0, ["packed loss = padded loss ✓", "134,515,008"], []),
        ("finetune", 0, ["40 of 40 steps; ", "The weights of step 30 were kept", "not there yet"], ["steps are done"]),
        (
            "finetune",
            1,
            ["1 of 40 steps are done.", "1 of 40 steps; ", "These steps are of a later attempt"],
            ["step 30"],
        ),
        ("evaluate", 0, ["Tuned gets 95.0 % of the fields right", "judged by json_fields"], ["no result yet"]),
    ],
)
def test_what_a_stage_finished_is_shown_though_a_later_attempt_failed(
    tmp_path: Path, stage: str, steps: int, said: list[str], unsaid: list[str]
) -> None:
    def broken(spec: Spec, *, out: Output) -> None:
        for number in range(1, steps + 1):
            step(out, number, 1.0)
        raise ModelError("first line\nsecond line")

    run = run_until(tmp_path / "run", "evaluate")
    write_json(run.path / "plan.json", {"estimate": {"peak_bytes": 3_145_728_000, "seconds": 10.0, "tokens": 20_000}})
    before = run.artifact(stage).path.name
    with pytest.raises(ModelError):
        run.once(Stage(stage, 2, broken), Free())
    text = read(Run(run.path)).text
    assert f"A later attempt at stage {stage} failed." in text
    assert f"Shown is {before}, which was finished before. first line" in text
    assert f"{stage} later attempt failed {before}" in text
    for words in said:
        assert words in text
    for words in ("made from earlier artifacts", *unsaid):
        assert words not in text


def test_the_claim_that_failed_is_shown(tmp_path: Path) -> None:
    def unproven(spec: Spec, *parents: Artifact, out: Output, model: str) -> None:
        proof = Proof()
        proof.claim("the end token is supervised", False, rows=10, with_end=1)
        proof.write(out / "proof.json")

    with pytest.raises(ProofError):
        run_until(tmp_path / "run", "initialise", initialise=unproven)
    assert "the end token is supervised ✗ no rows 10, with end 1" in read(Run(tmp_path / "run")).text


def test_damaged_and_outdated_artifacts_are_named(tmp_path: Path) -> None:
    run = run_until(tmp_path / "run", "evaluate")
    run.once(Stage("search", 2, search), Free(given={"trials": 1}))
    text = read(run).text
    assert "What stands here for finetune, evaluate was made from earlier artifacts" in text
    (run.artifact("finetune").path / "manifest.json").write_text("{", encoding="utf-8")
    assert "no readable manifest.json" in read(Run(run.path)).text
