"""The prune stage in whole runs: off by default, zeros through recovery, smaller models end to end, and what is refused."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

import tunesmith
from tunesmith.base import ConfigError, MachineError, ModelError, Run
from tunesmith.base.files import read_json, write_json
from tunesmith.data.prepared import load_split
from tunesmith.models import attention
from tunesmith.models.load import load
from tunesmith.stages import finetune, measures, prune, report
from tunesmith.stages.general import general_examples
from tunesmith.stages.judge import likelihoods
from tunesmith.stages.pipeline import open_run
from tunesmith.stages.plan import check_memory, recovery_plans

RECOVERY = (
    "prune.recovery={epochs: 1, batch: 4, checkpoint_every: 2, optimizer: {learning_rate: 0.01, weight_decay: 0.1}}"
)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory, tiny_folder):
    """A short run of a tiny model."""
    tmp_path = tmp_path_factory.mktemp("recipe")
    colours = ["red", "green", "blue", "black"]
    lines = [
        {"messages": [{"role": "user", "content": f"Shade {n}?"}, {"role": "assistant", "content": colours[n % 4]}]}
        for n in range(40)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    settings = {
        "model": str(tiny_folder),
        "precision": "bf16",
        "prepare": {"source": "rows.jsonl", "test_fraction": 8, "validation_fraction": 8, "cleaners": []},
        "initialise": {"adapter": {"rank": 4}},
        "finetune": {"epochs": 1.0, "batch": 8, "optimizer": {"learning_rate": 0.01}},
        "evaluate": {
            "graders": [{"kind": "exact"}, {"kind": "perplexity"}], "max_tokens": 4, "shots": 0, "baselines": False, "general": None,
            "gate": {"margin": None, "beat": []},
        },
        "deploy": {"ungated": True, "prompts": 4},
    }  # fmt: skip
    path = tmp_path / "recipe.yaml"
    path.write_text(json.dumps(settings))
    return path


@pytest.fixture(autouse=True)
def few_general_rows(monkeypatch):
    """Three of the general rows are as good as all here."""
    monkeypatch.setattr(measures, "general_examples", lambda: general_examples()[:3])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A run folder for all: what is trained before pruning is trained once."""
    return tmp_path_factory.mktemp("runs") / "r"


def claims(run: Run, stage: str) -> dict[str, dict]:
    return {claim["claim"]: claim for claim in read_json(run.artifact(stage) / "proof.json")["claims"]}


def test_off_it_changes_nothing_of_what_others_read(recipe, folder):
    run = Run(tunesmith.run(recipe, folder=folder))
    made = run.artifact("prune")
    assert made.metrics == {"kind": "none"}
    assert made.manifest["files"] == {}
    parents = {
        stage: [parent["stage"] for parent in run.artifact(stage).manifest["parents"]]
        for stage in ("evaluate", "deploy")
    }
    assert parents == {"evaluate": ["prepare", "initialise", "finetune"], "deploy": ["prepare", "finetune", "evaluate"]}
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert 'id="pruning"' not in page
    states = read_json(run.path / "stages.json")
    states.pop("prune")  # as in runs from before there was pruning
    write_json(run.path / "stages.json", states)
    assert "has not been started" not in report.write(Run(run.path)).read_text(encoding="utf-8")


def test_sparse_with_recovery_from_end_to_end(recipe, folder):
    run = Run(tunesmith.run(recipe, "prune.method={kind: wanda, sparsity: 0.5, rows: 10}", RECOVERY, folder=folder))
    pruned = run.artifact("prune")
    assert {claim["holds"] for claim in claims(run, "prune").values()} == {True}
    assert set(claims(run, "prune")) == {
        "merged = adapter, in fp32", "the model folder is what was left in place, and the rest silenced", "the zeros asked for are there",
        "the model folder is what was tuned again", "pruned weights stayed zero while the others learnt",
    }  # fmt: skip
    assert {path.parts[0] for path in map(Path, pruned.manifest["files"])} == {"model", "proof.json"}
    tensors = load_file(pruned / "model" / "model.safetensors")
    projections = {name: tensor for name, tensor in tensors.items() if name.endswith("_proj.weight")}
    assert len(projections) == 14
    for tensor in projections.values():
        assert ((tensor == 0).sum(1) == tensor.shape[1] // 2).all()
    metrics = pruned.metrics
    assert metrics["zeros"] == dict.fromkeys(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj", "all"), 0.5
    )
    assert (
        metrics["parameters"]["before"]
        == metrics["parameters"]["after"]
        == sum(map(torch.Tensor.numel, tensors.values()))
    )
    assert metrics["deflated"]["after"] < 0.8 * metrics["deflated"]["before"]
    assert set(metrics["perplexity"]) == {"before", "pruned", "recovered"}
    assert metrics["perplexity"]["recovered"]["validation"] < metrics["perplexity"]["pruned"]["validation"]
    assert metrics["recovery"]["steps"] == 6
    assert all(speed["ratio"] == speed["after"] / speed["before"] > 0 for speed in metrics["speed"].values())
    deployed = load_file(run.artifact("deploy") / "model" / "model.safetensors")
    assert all(torch.equal(deployed[name], tensor) for name, tensor in tensors.items())
    assert "merged = adapter, in fp32" not in claims(run, "deploy")
    card = (run.artifact("deploy") / "model" / "README.md").read_text(encoding="utf-8")
    assert "Then pruned (wanda)" in card
    assert "50 % of the weights inside layers are zero, and tuned again for 6 steps." in card
    page = (run.path / "report.html").read_text(encoding="utf-8")
    assert 'id="pruning"' in page
    assert "after recovery" in page


def test_evaluation_compares_the_base_with_the_pruned_model(recipe, folder):
    run = Run(tunesmith.run(recipe, "prune.method={kind: channels, share: 0.5}", folder=folder))
    parents = [parent["stage"] for parent in run.artifact("evaluate").manifest["parents"]]
    assert parents == ["prepare", "initialise", "finetune", "prune"]
    test = load_split(run.artifact("prepare").path, "test")
    systems = read_json(run.artifact("evaluate") / "results.json")["task"]["graders"]["perplexity"]["systems"]
    folders = {"base": open_run(run.path).recipe.model, "tuned": str(run.artifact("prune") / "model")}
    for system, place in folders.items():
        found = likelihoods(load(place, "bf16"), test)
        expected = np.exp(sum(one.loss for one in found) / sum(one.tokens for one in found))
        assert systems[system]["value"] == pytest.approx(expected, rel=1e-4)
    assert systems["base"]["value"] != pytest.approx(systems["tuned"]["value"], rel=1e-2)
    metrics = run.artifact("prune").metrics
    plain = AutoModelForCausalLM.from_pretrained(run.artifact("deploy") / "model")
    assert plain.config.intermediate_size == 16
    assert plain.num_parameters() == metrics["parameters"]["after"] < metrics["parameters"]["before"]
    assert metrics["bytes"]["after"] == 2 * metrics["parameters"]["after"]
    assert metrics["zeros"]["all"] == 0
    assert "recovered" not in metrics["perplexity"]


def test_a_smaller_model_may_recover_by_lora(recipe, folder):
    settings = ("prune.method={kind: heads}", RECOVERY, "prune.adapter={kind: lora, rank: 4}")
    run = open_run(recipe, folder, settings)
    pruned = run.stage("prune")
    assert (
        pruned.metrics["perplexity"]["recovered"]["validation"] < pruned.metrics["perplexity"]["pruned"]["validation"]
    )
    assert read_json(pruned / "model" / "config.json")["num_key_value_heads"] == 1
    assert set(load_file(pruned / "model" / "model.safetensors")) == set(
        load_file(Path(run.recipe.model) / "model.safetensors")
    )


def test_a_killed_recovery_goes_on_bit_for_bit_and_keeps_its_zeros(recipe, folder, tmp_path, monkeypatch):
    settings = ("prune.method={kind: magnitude, pattern: '2:4'}", RECOVERY)
    open_run(recipe, folder, settings).stage("finetune")
    shutil.copytree(folder, tmp_path / "cut")
    whole = open_run(recipe, folder, settings).stage("prune")
    run = open_run(recipe, tmp_path / "cut", settings)
    note, done, cuts = finetune.Training._note, [], []

    def cut_off(self, step, seconds):
        note(self, step, seconds)
        done.append(step.number)
        if step.number == 3 and done.count(3) == 1:
            raise RuntimeError("power")

    silence = type(run.recipe.prune.method).silence
    monkeypatch.setattr(type(run.recipe.prune.method), "silence", lambda *given: cuts.append(1) or silence(*given))
    monkeypatch.setattr(finetune.Training, "_note", cut_off)
    with pytest.raises(RuntimeError, match="power"):
        run.stage("prune")
    again = open_run(recipe, tmp_path / "cut", settings).stage("prune")
    assert done == [0, 1, 2, 3, 2, 3, 4, 5]
    assert len(cuts) == 1  # pruning itself is not done again
    assert again.id == whole.id
    assert again.metrics["precision"] == "bf16"
    for name, tensor in load_file(again / "model" / "model.safetensors").items():
        if name.endswith("_proj.weight"):
            assert ((tensor.view(-1, 4) == 0).sum(1) == 2).all()


def test_what_another_version_of_training_tuned_again_is_not_taken_for_done(recipe, folder, monkeypatch):
    """What was only pruned is, as the training before it came to the same."""
    monkeypatch.setattr(prune, "STAGE", replace(prune.STAGE, function=lambda *_, **__: None))
    method = "prune.method={kind: magnitude, sparsity: 0.125}"

    def made() -> list[str]:
        return [open_run(recipe, folder, (method, *more)).stage("prune").path.name for more in ((), (RECOVERY,))]

    first = made()
    monkeypatch.setattr(finetune, "STAGE", replace(finetune.STAGE, version=finetune.STAGE.version + 1))
    again = made()
    assert [one == other for one, other in zip(first, again, strict=True)] == [True, False]


def test_what_makes_no_sense_is_refused_before_anything_is_loaded(recipe, tmp_path):
    def refused(*settings):
        with pytest.raises(ConfigError) as caught:
            open_run(recipe, tmp_path / "r", settings)
        return str(caught.value)

    assert "recovery follows pruning: say what goes" in refused(RECOVERY)
    lora = "prune.adapter={kind: lora}"
    assert "adapter lora learns beside the weights, and merged into them would fill the zeros of wanda" in refused(
        "prune.method={kind: wanda}", RECOVERY, lora
    )
    assert "which adapter prompt does not end in" in refused(
        "prune.method={kind: heads}", RECOVERY, "prune.adapter={kind: prompt}"
    )
    assert "which optimizer hybrid does not end in" in refused(
        "prune.method={kind: heads}", "prune.recovery={optimizer: {kind: hybrid}}", lora
    )
    prompt = refused("prune.method={kind: heads}", "initialise.adapter={kind: prompt}")
    assert "what the adapter prompt learns is no part of them; set prune.method=null" in prompt
    assert "'wnda' does not exist; did you mean 'wanda'?" in refused("prune.method={kind: wnda}")


def test_a_model_that_cannot_be_pruned_is_refused_before_training(recipe, folder, tmp_path, monkeypatch):
    run = open_run(recipe, folder, ("prune.method={kind: layers, count: 2}",))
    with pytest.raises(ModelError, match=r"prune.method.count 2: the model has 2 layers"):
        run.stage("initialise")
    odd = AutoConfig.for_model("llama", vocab_size=4096, hidden_size=18, num_attention_heads=1, num_key_value_heads=1)
    shutil.copytree(run.recipe.model, tmp_path / "odd")
    odd.save_pretrained(tmp_path / "odd")
    run = open_run(recipe, folder, (f"model={tmp_path / 'odd'}", "prune.method={kind: wanda, pattern: '2:4'}"))
    with pytest.raises(ModelError, match=r"rows of 18 weights, no multiple of 4; take pattern: free"):
        run.stage("initialise")
    monkeypatch.setattr(attention, "adopt", lambda model: False)
    run = open_run(recipe, tmp_path / "r", ("prune.method={kind: wanda}",))
    with pytest.raises(
        ModelError, match=r"layers of .*tiny-llama.* cannot be run one by one on training rows; take prune"
    ):
        run.stage("finetune")
    assert "finetune" not in run.run.states
    monkeypatch.undo()
    preferences = open_run(recipe, folder, ("prune.method={kind: wanda}", "prune.recovery={objective: {kind: dpo}}"))
    with pytest.raises(tunesmith.base.DataError, match="1 answers, objective dpo learns from 2"):
        preferences.stage("initialise")


def test_the_plan_counts_recovery(recipe, folder):
    run = open_run(recipe, folder, ("prune.method={kind: wanda}", RECOVERY))
    rows = load_split(run.stage("prepare").path, "train")
    found = list(recovery_plans(run.recipe, rows))
    assert found[0].method == "after pruning: bf16 full sft adamw"
    assert found[0].estimate.learning == found[0].estimate.parameters
    assert all(
        setting.startswith("prune.recovery.") for each in found for setting in each.settings
    )  # lora would fill the zeros
    own = found[0].estimate
    smaller = min(each.estimate.needed for each in found)
    limit = (smaller + own.needed) // 2
    limited = [replace(each, estimate=replace(each.estimate, available=limit)) for each in found]
    with pytest.raises(MachineError, match=r"set prune\.recovery\."):
        check_memory(limited)
    run.stage("initialise")
    plan = read_json(run.run.path / "plan.json")
    assert plan["recovery"]["estimate"]["steps"] == 6
    assert run.recipe.prune.recovery.activation_checkpointing is False  # what auto came to
    before = (run.run.path / "plan.json").stat().st_mtime_ns
    open_run(run.run.path).stage("initialise")
    assert (run.run.path / "plan.json").stat().st_mtime_ns == before
