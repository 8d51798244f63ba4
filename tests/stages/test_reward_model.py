"""A reward model from preferences to a folder that other programs read, and a run that is paid by it."""

import importlib.util
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

import tunesmith
from tunesmith.base import ArtifactError, ConfigError, DataError, ModelError, Output, Run
from tunesmith.base.files import read_json, write_json
from tunesmith.data.example import Example
from tunesmith.data.prepared import load_examples, load_split
from tunesmith.data.render import Renderer
from tunesmith.grading.reward_model import RewardModel
from tunesmith.models.load import load
from tunesmith.models.scorer import load_scorer, score_rows
from tunesmith.stages import finetune
from tunesmith.stages.deploy import Deploy
from tunesmith.stages.pipeline import open_run
from tunesmith.stages.plan import plan
from tunesmith.stages.recipe import read_recipe
from tunesmith.stages.scoring import deploy_scorer
from tunesmith.training.rollouts import Reward, Rollouts

WORDS = ("red", "green", "blue", "black", "white", "grey", "pink", "brown")


def settings(folder: Path, source: str, graders: list[dict], **tune) -> dict:
    return {
        "model": str(folder),
        "precision": "fp32",
        "prepare": {"source": source, "test_fraction": 16, "validation_fraction": 8, "cleaners": []},
        "initialise": {"adapter": {"rank": 4}},
        "finetune": {"epochs": 4.0, "batch": 8, "checkpoint_every": 5, "optimizer": {"learning_rate": 0.02}, **tune},
        "evaluate": {"graders": graders, "general": None, "gate": {"margin": None, "rows": 1, "beat": []}},
    }


@pytest.fixture(scope="module")
def preferences(tmp_path_factory, tiny_folder) -> Path:
    """A recipe: people prefer answers that say please."""
    folder, generator = tmp_path_factory.mktemp("preferences"), np.random.default_rng(0)
    lines = []
    for number in range(80):
        one, other = (" ".join(generator.choice(WORDS, generator.integers(1, 4))) for _ in range(2))
        lines.append({"prompt": f"Shade {number}?", "chosen": f"{one} please", "rejected": other, "margin": "0.1"})
    (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    tree = settings(tiny_folder, "pairs.jsonl", [{"kind": "pairwise"}], objective={"kind": "reward", "centering": 0.01})
    tree["prepare"]["columns"] = ["margin"]
    (folder / "reward.yaml").write_text(json.dumps(tree))
    return folder / "reward.yaml"


@pytest.fixture(scope="module")
def trained(preferences) -> Path:
    return tunesmith.run(preferences, folder=preferences.parent / "runs" / "reward")


@pytest.fixture
def methods(request, monkeypatch):
    """The benchmark of methods."""
    path = request.config.rootpath / "benchmarks" / "methods.py"
    monkeypatch.syspath_prepend(path.parent)
    spec = importlib.util.spec_from_file_location("methods_benchmark", path)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


def test_the_table_of_methods_counts_pairs_that_are_ordered_rightly(
    methods, trained, preferences, tmp_path, monkeypatch
):
    (preferences.parent / "base.yaml").write_text(f"# LoRA: the base\nextends: {preferences.name}\n")
    shown = importlib.import_module("methods_table")
    for module in (methods, shown):
        monkeypatch.setattr(module, "RECIPES", preferences.parent)
    run = methods.one("reward", 0, tmp_path / "run")
    block = read_json(Run(trained).artifact("evaluate") / "results.json")["task"]["graders"]["pairwise"]
    assert run["measure"] == "pairs"
    assert run["totals"] == [1.0] * 16
    assert 100 * sum(run["hits"]) / 16 == pytest.approx(block["systems"]["tuned"]["value"])
    base = {
        **{key: value for key, value in run.items() if key != "measure"},
        "hits": [1.0] * 100,
        "totals": [1.0] * 100,
    }
    *_, line = shown.table({"base": {"runs": [base]}, "reward": {"runs": [run]}}).splitlines()
    *_, score, against, forgotten = (cell.strip() for cell in line.strip("|").split("|"))
    assert score.startswith(f"{100 * sum(run['hits']) / 16:.1f} [")
    assert score.endswith("] of pairs")
    assert (against, forgotten) == ("", "")


def test_held_out_pairs_of_that_table_come_from_its_test_rows(methods):
    recipe, _, folder, *settings = methods.held_out(Path("runs"))
    found = read_recipe(Path(recipe), tuple(settings))
    base = read_recipe(Path(recipe))
    assert (found.prepare.source, found.prepare.rows) == (base.prepare.test, base.prepare.test_rows)
    assert (found.prepare.test, found.prepare.test_fraction, found.prepare.validation_fraction) == (None, 0, 0)
    assert (found.sample.system, Path(folder).name) == ("base", "held-out-pairs")


def test_preferences_are_learnt_measured_and_proved(trained):
    run = Run(trained)
    steps = list(run.events.read("step"))
    assert {"accuracy", "margin", "chosen_score", "rejected_score"} <= set(steps[0])
    assert {event["metric"] for event in run.events.read("validation")} == {"loss"}
    results = read_json(run.artifact("evaluate") / "results.json")
    block = results["task"]["graders"]["pairwise"]
    assert set(block["systems"]) == {"base", "length", "tuned"}
    tuned = block["systems"]["tuned"]
    assert tuned["value"] > 80
    assert tuned["low"] <= tuned["value"] <= tuned["high"]
    assert tuned["n"] == 16
    assert {"tuned - base", "tuned - length"} == set(block["differences"])
    assert results["gate"]["promote"]
    for stage in ("finetune", "evaluate", "deploy"):
        claims = read_json(run.artifact(stage) / "proof.json")["claims"]
        assert claims
        assert all(claim["holds"] for claim in claims)
    assert {row.columns["margin"] for row in load_split(run.artifact("prepare").path, "train")} == {0.1}
    page = (trained / "report.html").read_text()
    assert "pairwise" in page
    lines = [json.loads(line) for line in (run.artifact("evaluate") / "scores.jsonl").read_text().splitlines()]
    hits = [line["scores"]["tuned"][0] > line["scores"]["tuned"][1] for line in lines]
    assert 100 * np.mean(hits) == pytest.approx(tuned["value"])


def test_other_programs_score_as_the_grader_does(trained):
    """transformers' own model of the deployed folder, several answers at a time, padded by the tokenizer saved beside it."""
    run = Run(trained)
    folder, examples = run.artifact("deploy") / "model", load_examples(run.artifact("prepare").path, "test")[:6]
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert (model.config.num_labels, type(model).__name__) == (1, "LlamaForSequenceClassification")
    renderer = Renderer(tokenizer)
    assert tokenizer.pad_token_id not in renderer.ends
    answers = ["blue please", "blue", "a", "", "red red red please", "grey"]
    rows = [
        renderer.row(Example("x", example.prompt, (({"role": "assistant", "content": answer},),)))
        for example, answer in zip(examples, answers, strict=True)
    ]
    texts = [{"input_ids": row.sequences[0].tokens.tolist()} for row in rows]
    with torch.no_grad():
        expected = model(**tokenizer.pad(texts, return_tensors="pt")).logits[:, 0].tolist()
    found = RewardModel(run=str(trained), precision="fp32").worth(answers, examples)
    assert found == pytest.approx(expected, abs=1e-4)
    assert RewardModel(run=str(folder), precision="fp32").worth(answers, examples) == pytest.approx(found, abs=1e-5)
    assert found[0] > found[1]
    figure = RewardModel(run=str(trained), precision="fp32").figures(examples, answers)["headline"]
    assert figure.point == pytest.approx(np.mean(found))
    kept = load_scorer(str(folder), "fp32")
    told = score_rows(kept, load_split(run.artifact("prepare").path, "test"))
    lines = [json.loads(line) for line in (run.artifact("evaluate") / "scores.jsonl").read_text().splitlines()]
    assert np.allclose(told, [line["scores"]["tuned"] for line in lines], atol=1e-4)


def test_rollouts_are_paid_by_a_reward_model(trained, tmp_path, tiny_folder):
    lines = [{"prompt": f"Shade {number}?", "answer": "red"} for number in range(48)]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shutil.copytree(trained, tmp_path / "reward")
    rollouts = {"rewards": [{"grader": {"kind": "reward_model", "run": "reward"}, "weight": 0.5}], "samples": 2, "max_tokens": 4}  # fmt: skip
    tree = settings(tiny_folder, "prompts.jsonl", [{"kind": "reward_model", "run": "reward"}], objective={"kind": "ppo"},
                    rollouts=rollouts, validation={"rows": 2, "max_tokens": 4})  # fmt: skip
    tree["finetune"] |= {"epochs": 0.5}
    tree["evaluate"] |= {"shots": 0, "baselines": False, "max_tokens": 4}
    (tmp_path / "paid.yaml").write_text(json.dumps(tree))
    pipeline = open_run(tmp_path / "paid.yaml", tmp_path / "run")
    (paid,) = pipeline.recipe.finetune.rollouts.rewards
    assert paid.grader.run == str(tmp_path / "reward")  # relative to the recipe
    ours, weights = plan(pipeline.recipe)[0].estimate, tmp_path / "reward" / Run(trained).artifact("deploy").path.name
    elsewhere = pipeline.recipe.model_copy(update={"finetune": _paid_by_exact(pipeline.recipe.finetune)})
    assert (
        ours.weights - plan(elsewhere)[0].estimate.weights == (weights / "model" / "model.safetensors").stat().st_size
    )
    done = pipeline.locked("finetune")
    steps = list(pipeline.run.events.read("step"))
    assert len(steps) == done.metrics["steps"] >= 1
    assert all(np.isfinite(step["reward"]) and step["reward"] != 0 for step in steps)
    assert [entry["name"] for entry in done.manifest["inputs"]] == ["manifest.json"]
    assert set(pipeline.locked("evaluate").metrics["systems"]) == {"base", "tuned"}


def _paid_by_exact(tune):
    rollouts = tune.rollouts.model_copy(update={"rewards": (Reward(grader={"kind": "exact"}),)})
    return tune.model_copy(update={"rollouts": rollouts})


def test_the_grader_scores_many_at_a_time_as_one_by_one(trained):
    grader = RewardModel(run=str(trained), precision="fp32")
    examples = load_examples(Run(trained).artifact("prepare").path, "test")[:12]
    answers = [" ".join(WORDS[: 1 + number % 5]) for number in range(12)]
    alone = [grader.worth([answer], [example])[0] for answer, example in zip(answers, examples, strict=True)]
    assert grader.worth(answers, examples) == pytest.approx(alone, abs=1e-5)
    paid = Rollouts(rewards=(Reward(grader=grader, weight=2.0), Reward(grader={"kind": "exact"})))
    assert [sum(each) for each in paid.earned(answers, examples)] == pytest.approx([2 * one for one in alone], abs=1e-5)
    with pytest.raises(DataError, match=r"notes\.txt:1: plain text has no prompt"):
        grader.worth(["x"], [Example("notes.txt:1", text="Once.")])


def test_a_killed_run_ends_with_the_same_bits(preferences, trained, tmp_path, monkeypatch):
    note, done = finetune.Training._note, []

    def cut_off(self, step, seconds):
        note(self, step, seconds)
        done.append(step.number)
        if step.number == 8 and done.count(8) == 1:
            raise RuntimeError("power")

    monkeypatch.setattr(finetune.Training, "_note", cut_off)
    with pytest.raises(RuntimeError, match="power"):
        tunesmith.finetune(preferences, folder=tmp_path / "cut")
    again = tunesmith.finetune(preferences, folder=tmp_path / "cut")
    assert done.count(5) == 2  # from the checkpoint of five steps on
    files = again.manifest["files"]
    whole = Run(trained).artifact("finetune").manifest["files"]
    for name in ("adapter/head.safetensors", "adapter/adapter_model.safetensors"):
        assert files[name]["sha256"] == whole[name]["sha256"]


def test_marks_are_learnt_and_measured(tmp_path, tiny_folder):
    lines = [{"prompt": f"Shade {n}?", "answer": WORDS[n % 4] + " please" * (n % 2), "stars": 1 + 3 * (n % 2)} for n in range(64)]  # fmt: skip
    (tmp_path / "marks.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    graders = [{"kind": "score_error", "column": "stars"}, {"kind": "rank_correlation", "column": "stars"}]
    tree = settings(tiny_folder, "marks.jsonl", graders, objective={"kind": "reward", "loss": "regression", "target": "stars"})  # fmt: skip
    (tmp_path / "marks.yaml").write_text(json.dumps(tree))
    with pytest.raises(DataError, match=r"prepare\.columns=\[stars\]"):
        tunesmith.finetune(tmp_path / "marks.yaml", folder=tmp_path / "run")
    done = tunesmith.evaluate(tmp_path / "marks.yaml", "prepare.columns=[stars]", folder=tmp_path / "run")
    blocks = read_json(done / "results.json")["task"]["graders"]
    assert blocks["score_error"]["systems"]["tuned"]["value"] < 0.7 * blocks["score_error"]["systems"]["base"]["value"]
    assert blocks["rank_correlation"]["systems"]["base"]["value"] == 0  # one score for all
    assert blocks["rank_correlation"]["systems"]["tuned"]["value"] > 0.6


def test_a_reward_model_writes_no_answers(trained, tmp_path, tiny_folder):
    with pytest.raises(ModelError, match="scores answers and writes none"):
        load(str(Run(trained).artifact("deploy") / "model"))
    with pytest.raises(ModelError, match="is no reward model"):
        load_scorer(str(tiny_folder))
    (tmp_path / "stages.json").write_text("{}")
    with pytest.raises(ArtifactError, match="stage 'deploy' is not started"):
        RewardModel(run=str(tmp_path)).worth([], [])


def test_its_template_tells_the_day_of_its_rows_for_ever(trained, tiny_folder, tmp_path):
    run, template = Run(trained), (tiny_folder / "chat_template.jinja").read_text()
    dated = shutil.copytree(tiny_folder, tmp_path / "dated")
    (dated / "chat_template.jinja").write_text("Today is {{ strftime_now('%d %b %Y') }}.\n" + template)
    prepared = replace(run.artifact("prepare"), path=tmp_path / "prepared")
    shutil.copytree(run.artifact("prepare").path, prepared.path)
    write_json(prepared / "summary.json", read_json(prepared / "summary.json") | {"today": "2024-02-29"})
    about = {"model": str(dated), "precision": "fp32", "adapter": {"kind": "lora", "rank": 4}}
    deploy_scorer(Deploy(), prepared, run.artifact("finetune"), out=Output(tmp_path / "out", run.events), **about)
    folder = tmp_path / "out" / "model"

    def read():
        loaded = load_scorer(str(folder), "fp32")
        return loaded.tokenizer.decode(loaded.renderer().prompt([{"role": "user", "content": "Shade 1?"}], ()))

    assert read().startswith("Today is 29 Feb 2024.")
    (folder / "rendering.json").write_text("{}")
    with pytest.raises(ModelError, match=r"rendering\.json does not say what day it is"):
        read()
    (folder / "rendering.json").unlink()  # as in a stranger's folder
    assert read().startswith("Today is 26 Jul 2024.")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("evaluate.graders=[{kind: exact}]", "set evaluate.graders to what judges scores"),
        ("evaluate.general=bundled", r"evaluate\.general and evaluate\.gate\.margin to null"),
        ("evaluate.gate.margin=5", r"evaluate\.general and evaluate\.gate\.margin to null"),
        ("finetune.objective={kind: dpo}", "pairwise judges the scores of a reward model"),
        ("initialise.adapter={kind: prompt, tokens: 4}", "kept beside the weights"),
        ("finetune.validation.metric={kind: pairwise}", "reads scores, and validation makes answers"),
        ("finetune.validation.metric={kind: chrf}", "take auto or loss"),
    ],
)
def test_settings_that_make_no_sense_are_refused(preferences, tmp_path, change, message):
    with pytest.raises(ConfigError, match=message):
        open_run(preferences, tmp_path, (change,))
