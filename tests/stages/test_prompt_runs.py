"""The best prompt is chosen by training rows that stand in no prompt; the test rows say what it is worth and have no part in it."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.testing import CliRunner

from tunesmith.base import ConfigError, DataError, Interrupted, MachineError, Run
from tunesmith.base.extras import extra
from tunesmith.base.files import read_json
from tunesmith.cli.app import app
from tunesmith.data.prepared import load_examples, load_split
from tunesmith.data.retrieval.bm25 import BM25
from tunesmith.grading.gate import Gate
from tunesmith.stages.comparison import Task
from tunesmith.stages.documents import Retrieval
from tunesmith.stages.merged import Merger, merged_from
from tunesmith.stages.pipeline import open_run
from tunesmith.stages.prompting import check
from tunesmith.stages.prompting.way import Prompter
from tunesmith.stages.report import write

ROOT = Path(__file__).parents[2]


SVD = {"kind": "embedding", "model": "svd"}


COLOURS = ["red", "green", "blue", "black"]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, tiny_folder):
    folder = tmp_path_factory.mktemp("prompting")
    lines = [{"prompt": f"Shade {number} of {COLOURS[number % 4]} kind?", "answer": COLOURS[number % 4]} for number in range(60)]  # fmt: skip
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tree = {
        "model": str(tiny_folder),
        "precision": "fp32",
        "prepare": {"source": "rows.jsonl", "test_fraction": 12, "validation_fraction": 0, "cleaners": []},
        "initialise": {"adapter": {"rank": 2}},
        "finetune": {"epochs": 0.5, "batch": 8, "optimizer": {"learning_rate": 0.02}},
        "prompt": {"shots": [2], "development": 8, "retrievers": [{"kind": "bm25"}, SVD], "optimiser": {"steps": 2}},
        "evaluate": {
            "graders": [{"kind": "chrf"}, {"kind": "exact"}], "max_tokens": 4, "prompted": True, "baselines": False, "shots": 0,
            "general": None, "gate": {"margin": None, "rows": 1},
        },
    }  # fmt: skip
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(tree))
    return path


@pytest.fixture(scope="module")
def made(recipe, monkeypatch_module):
    """The stage in a folder, and per call the rows that were asked."""
    asked: list[tuple[str, list[str]]] = []
    answers = Prompter.answers
    monkeypatch_module.setattr(
        Prompter,
        "answers",
        lambda self, way, rows: asked.append((way.name, [row.origin for row in rows])) or answers(self, way, rows),
    )
    pipeline = open_run(recipe, recipe.parent / "run")
    return pipeline.stage("prompt"), asked, pipeline


@pytest.fixture(scope="module")
def monkeypatch_module():
    with pytest.MonkeyPatch.context() as patch:
        yield patch


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("prompt.shots=[0]", "counts from 1 on"),
        ("prompt.ways=[optimised]", "needs another way to begin with"),
        ("prompt.retrievers=[{kind: bm25}]", "diverse tells examples apart by an embedding"),
        ("prompt.retrievers=[{kind: bm25}, {kind: bm25}, {kind: embedding}]", "each named once"),
        ("prompt.optimiser.words=[5, 9]", "falls from the first number to the second"),
        ("prompt.proposer={kind: endpoint, url: 'ftp://x', model: m}", "begins with http"),
        ("prompt.proposer={kind: endpoint, url: 'https://me:secret@x/v1', model: m}", "holds no password and no key"),
        ("evaluate={prompted: true, graders: [{kind: perplexity}]}", "the gate decides by perplexity"),
        ("evaluate.retrieval={documents: d, questions: q, retrievers: [{kind: bm25}, {kind: bm25}]}", "name each kind once"),
    ],
)  # fmt: skip
def test_settings_that_make_no_sense_are_refused(recipe, setting, message):
    with pytest.raises(ConfigError, match=message):
        open_run(recipe, None, (setting,))


def test_test_rows_are_asked_only_after_the_choice_and_have_no_part_in_it(made):
    artifact, asked, pipeline = made
    test = {row.origin for row in load_examples(pipeline.stage("prepare").path, "test")}
    first = next(place for place, (_, rows) in enumerate(asked) if set(rows) & test)
    before, after = asked[:first], asked[first:]
    assert all(set(rows) == test for _, rows in after)
    development = set(before[0][1])
    assert len(development) == 8
    assert all(set(rows) == development for _, rows in before)
    assert [name for name, _ in after] == [way["way"] for way in artifact.metrics["ways"]]
    assert 5 + 2 < len(before) <= 5 + 2 * 4
    claims = {claim["claim"]: claim for claim in read_json(artifact / "proof.json")["claims"]}
    assert claims["no row is used twice"]["holds"]
    assert claims["no row is used twice"]["development"] == 8


def test_the_best_on_development_rows_is_written_so_that_a_person_can_use_it(made):
    artifact, _, _ = made
    ways = artifact.metrics["ways"]
    assert [way["way"] for way in ways] == ["zero-shot", "random", "bm25", "embedding", "diverse", "optimised"]
    (best,) = (way for way in ways if way["chosen"])
    assert best["development"]["value"] == max(way["development"]["value"] for way in ways)
    assert all(way["test"]["n"] == 12 and way["tokens"] > 0 for way in ways)
    told = read_json(artifact / "prompt.json")
    assert told["way"] == best["way"]
    assert told["scores"]["test"] == best["test"]
    if told["choose"]:
        lines = (artifact / "examples.jsonl").read_text().splitlines()
        assert len(lines) == artifact.metrics["rows"]["examples"] == 60 - 12 - 8
    assert artifact.metrics["retrievers"] == {"bm25": "BM25 (k1=1.5, b=0.75)", "embedding": "TF-IDF"}
    assert len(read_json(artifact / "trajectory.json")) == 2


def test_the_best_prompt_stands_beside_tuned_and_the_gate_asks_tuned_to_beat_it(made):
    artifact, asked, pipeline = made
    before = len(asked)
    evaluated = pipeline.stage("evaluate")
    assert len(asked) == before  # answered once
    results = read_json(evaluated / "results.json")
    board = results["task"]
    assert board["systems"] == ["base", "prompted", "tuned"]
    best = next(way for way in artifact.metrics["ways"] if way["chosen"])
    assert board["graders"]["chrf"]["systems"]["prompted"] == best["test"]
    assert "tuned - prompted" in board["graders"]["chrf"]["differences"]
    assert any("beat prompted" in reason or "beats prompted" in reason for reason in results["gate"]["reasons"])
    assert "chosen from 6 by 8 training rows" in results["notes"]["prompted"]
    assert [parent["stage"] for parent in evaluated.manifest["parents"]] == ["prepare", "initialise", "finetune", "prompt"]  # fmt: skip
    page = write(pipeline.run).read_text()
    for said in ("Ways of prompting", "by 8 training rows", "optimised", artifact.path.name):
        assert said in page


def test_the_best_prompt_is_asked_the_rows_that_everything_is_measured_on(recipe, tmp_path):
    settings_ = (
        "evaluate.rows=5",
        "prompt.ways=[zero-shot, random]",
        "prompt.measure=best",
        "evaluate.graders=[{kind: chrf}]",
    )
    pipeline = open_run(recipe, tmp_path / "run", settings_)
    found, evaluated = pipeline.stage("prompt"), pipeline.stage("evaluate")
    drawn = [row.origin for row in load_examples(pipeline.prepare().path, "test", 5)]
    assert drawn != [row.origin for row in load_examples(pipeline.prepare().path, "test")[:5]]
    lines = [json.loads(line) for line in (evaluated / "answers.jsonl").read_text().splitlines()]
    assert [line["origin"] for line in lines] == drawn
    best = next(way for way in found.metrics["ways"] if way["chosen"])
    assert read_json(evaluated / "results.json")["task"]["graders"]["chrf"]["systems"]["prompted"] == best["test"]


def test_a_merged_run_is_to_beat_the_best_prompt_too_and_is_not_promoted_untold_about_documents(made, tmp_path):
    _, _, pipeline = made
    evaluated = pipeline.stage("evaluate")
    merged = Merger(merged_from([pipeline.run.path], ()), Run(tmp_path / "merged")).locked("evaluate")
    (found,) = read_json(merged / "results.json").values()
    own = read_json(evaluated / "results.json")["task"]["graders"]["chrf"]["systems"]
    board = found["task"]["graders"]["chrf"]
    assert list(board["systems"]) == ["base", "own", "prompted", "merged"]
    assert board["systems"]["prompted"]["value"] == own["prompted"]["value"]
    assert any("merged" in reason and "prompted" in reason for reason in found["gate"]["reasons"])
    asked = pipeline.recipe.evaluate.model_copy(update={"retrieval": Retrieval(documents="d", questions="q")})
    for gate, told in ((Gate(), True), (Gate(retrieval=False), False)):
        task = SimpleNamespace(name="one", spec=asked.model_copy(update={"gate": gate}))
        said = Task._decided(task, found["task"], None)
        assert any("merged was not asked about documents" in reason for reason in said["reasons"]) == told
        assert not (said["promote"] and told)


def test_a_search_that_was_stopped_goes_on_and_asks_nothing_twice(recipe, tmp_path, monkeypatch):
    settings_ = ("prompt.ways=[zero-shot, random, optimised]", "prompt.optimiser.steps=1", "prompt.measure=best")
    whole = open_run(recipe, tmp_path / "whole", settings_).stage("prompt")
    answers, asked = Prompter.answers, []

    def stop(self, way, rows):
        if len(asked) == 4:
            raise Interrupted(15)
        asked.append(way)
        return answers(self, way, rows)

    monkeypatch.setattr(Prompter, "answers", stop)
    with pytest.raises(Interrupted):
        open_run(recipe, tmp_path / "stopped", settings_).stage("prompt")
    asked.append(None)
    again = open_run(recipe, tmp_path / "stopped", settings_).stage("prompt")
    assert len(asked) == 1 + len(list(whole.path.glob("development-*.json"))) + 1  # and the best one's test answers
    assert read_json(again / "results.json") == read_json(whole / "results.json")
    assert sum(way["test"] is not None for way in again.metrics["ways"]) == 1


def test_the_command_prints_every_way_and_the_file_of_the_best(made, recipe):
    artifact, asked, pipeline = made
    before = len(asked)
    done = CliRunner().invoke(app, ["prompt", str(recipe), "--run", str(pipeline.run.path)], env={"COLUMNS": "160"})
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(artifact / "prompt.json")
    assert len(asked) == before


def test_a_prompt_is_looked_for_before_training_or_refused(recipe, tmp_path):
    pipeline = open_run(recipe, tmp_path / "run", ("prompt.development=60",))
    with pytest.raises(DataError, match=r"48 of 48 training rows ask something of their own; prompt\.development=60"):
        pipeline.stage("initialise")
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"Paragraph {number} says something." for number in range(40)))
    pipeline = open_run(recipe, tmp_path / "text", (f"prepare.source={text}", "evaluate.graders=[{kind: perplexity}]", "evaluate.prompted=false"))  # fmt: skip
    with pytest.raises(ConfigError, match=r"evaluate\.graders has only perplexity; add one that judges answers"):
        pipeline.stage("prompt")
    pipeline = open_run(recipe, tmp_path / "text", (f"prepare.source={text}", "evaluate.prompted=false"))
    with pytest.raises(DataError, match="plain text asks for no answer"):
        pipeline.stage("prompt")


def test_prompts_know_the_rows_that_a_training_learns_from(recipe, tmp_path):
    settings_ = ("finetune.rows=20", "prompt.ways=[zero-shot, random]", "prompt.measure=best")
    pipeline = open_run(recipe, tmp_path / "run", settings_)
    made = pipeline.stage("prompt")
    assert made.metrics["rows"] == {"examples": 20 - 8, "development": 8, "test": 12}
    prepared, spec = pipeline.prepare(), pipeline.recipe.prompt
    rows = load_split(prepared.path, "train")
    learnt = {rows[place].origin for place in pipeline.recipe.finetune.places(rows, 0)}
    _, divided = check(spec, prepared, pipeline.recipe.evaluate.graders, 0, 20)
    assert {each.origin for each in (*divided.pool, *divided.development)} == learnt
    pipeline = open_run(recipe, tmp_path / "few", ("finetune.rows=9",))
    with pytest.raises(DataError, match="9 of 9 training rows ask something of their own"):
        pipeline.stage("initialise")


def test_what_ways_of_prompting_lack_is_found_before_anything_is_trained(recipe, tmp_path, monkeypatch):
    monkeypatch.delenv("SOME_KEY", raising=False)
    endpoint = "prompt.proposer={kind: endpoint, url: 'http://x/v1', model: m, key_from_environment: SOME_KEY}"
    with pytest.raises(ConfigError, match="the environment variable SOME_KEY is empty"):
        open_run(recipe, tmp_path / "run", (endpoint,)).stage("initialise")
    unasked = (endpoint, "prompt.ways=[zero-shot]")  # neither the server nor a retriever
    monkeypatch.setattr(BM25, "index", lambda *_: extra("no_such_package", "eval", "retriever bm25"))
    open_run(recipe, tmp_path / "run", unasked).stage("initialise")
    with pytest.raises(MachineError, match="retriever bm25"):
        open_run(recipe, tmp_path / "run").stage("initialise")


def test_prompts_are_chosen_by_what_the_gate_decides_by(recipe, tmp_path):
    quick = ("prompt.ways=[zero-shot]", "prompt.measure=best")
    names = {}
    for task in (None, "exact", "perplexity"):
        setting = (*quick, f"evaluate.gate.task={task or 'null'}", "evaluate.gate.prompted=false")
        more = ("evaluate.graders=[{kind: chrf}, {kind: exact}, {kind: perplexity}]",)
        made = open_run(recipe, tmp_path / "run", (*setting, *more)).stage("prompt")
        names[task] = (made.metrics["grader"], made.id)
    assert [kind for kind, _ in names.values()] == ["chrf", "exact", "chrf"]  # perplexity judges no answers
    assert names[None][1] != names["exact"][1]


def test_the_recipe_that_is_shipped_finds_its_files():
    found = open_run(ROOT / "recipes" / "prompt.yaml").recipe.evaluate
    assert found.prompted
    passages, questions = found.retrieval.read()
    assert (len({one.document for one in passages}), len(questions)) == (8, 36)
