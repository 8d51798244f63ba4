"""What a whole run deploys: other programs load it, and it is what was trained, in whatever precision and whatever learnt."""

import shutil
from dataclasses import replace

import pytest
import torch
from synthetic_run import run_until
from transformers import AutoModelForCausalLM, AutoTokenizer
from whole_runs import write_recipe

import tunesmith
from tunesmith.base import ConfigError, Run
from tunesmith.base.files import read_json, write_json
from tunesmith.data.batch import Batch
from tunesmith.data.prepared import load_examples, load_split
from tunesmith.methods.merging.linear import Linear
from tunesmith.models.forward import token_logps
from tunesmith.models.generate import Sampling
from tunesmith.models.load import load
from tunesmith.stages.deploy import card
from tunesmith.stages.judge import answer
from tunesmith.stages.pipeline import open_run
from tunesmith.stages.served import adapters_of, models_of
from tunesmith.stages.sources import check, read_sources


@pytest.fixture
def recipe(tmp_path, tiny_folder):
    return write_recipe(tmp_path, tiny_folder)


def test_other_programs_load_what_was_deployed(recipe, tmp_path):
    run = Run(tunesmith.run(recipe, folder=tmp_path / "r"))
    folder = run.artifact("deploy") / "model"
    plain, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Shade 1?"}], add_generation_prompt=True, return_tensors="pt"
    )
    ours = load(str(folder), "fp32")
    with torch.no_grad():
        theirs = plain(**prompt).logits[0, -1].log_softmax(-1)
        from tunesmith.data.batch import Batch
        from tunesmith.data.example import Row, Sequence

        best = int(theirs.argmax())
        tokens = torch.cat([prompt["input_ids"][0], torch.tensor([best])]).numpy().astype("int32")
        learn = torch.zeros(len(tokens), dtype=torch.bool).numpy()
        learn[-1] = True
        found = token_logps(ours, Batch.of([Row("x", (Sequence(tokens, learn),))]))
    assert torch.allclose(found[0], theirs[best], atol=1e-5)
    from peft import PeftModel

    adapted = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(read_json(run.path / "plan.json") and open_run(run.path).recipe.model),
        run.artifact("finetune") / "adapter",
    )
    with torch.no_grad():
        assert torch.allclose(adapted(**prompt).logits, plain(**prompt).logits, atol=1e-4)


def test_the_card_has_the_decimals_of_the_grader(tmp_path):
    run, figure = run_until(tmp_path / "run", "evaluate"), {"value": 0.8123, "low": 0.7, "high": 0.9}
    prepared, finetuned, evaluated = map(run.artifact, ("prepare", "finetune", "evaluate"))
    summary = read_json(prepared / "summary.json")
    write_json(prepared / "summary.json", summary | {"splits": summary["splits"] | {"test": {"rows": 60}}})
    tuned = replace(finetuned, manifest={**finetuned.manifest, "spec": {**finetuned.manifest["spec"], "batch": 8}})
    scores = {**evaluated.metrics, "digits": 3, "systems": {"tuned": {**figure, "n": 60}}}
    measured = replace(evaluated, manifest={**evaluated.manifest, "metrics": scores, "spec": {"precision": "auto"}})
    assert "| tuned | 0.812 | 0.700 to 0.900 |" in card(prepared, tuned, measured, None, "a-model", {"kind": "lora"})


def test_a_gguf_file_is_written_read_back_and_proved(recipe, tmp_path):
    settings = ("finetune.epochs=0.5", "deploy.ungated=true", "deploy.prompts=4", "deploy.gguf=f16", "evaluate.baselines=false", "evaluate.general=null", "evaluate.shots=0")  # fmt: skip
    deployed = open_run(recipe, tmp_path / "run", settings).stage("deploy")
    claims = {claim["claim"]: claim for claim in read_json(deployed / "proof.json")["claims"]}
    assert claims["tokens of the GGUF file in f16 = of the trained model"]["prompts"] == 4
    assert 0 < claims["GGUF file in f16 = stored"]["rms_gap"] == deployed.metrics["gguf_gap"] < 0.01
    assert sorted(path.name for path in deployed.path.iterdir()) == [
        "manifest.json",
        "model",
        "model.gguf",
        "proof.json",
    ]
    weights = sum(one.numel() for one in load(str(deployed / "model"), "fp32").model.parameters())
    assert 2 * weights < (deployed / "model.gguf").stat().st_size < 2 * weights + 4_000_000  # the rest is the tokenizer


@pytest.mark.parametrize(
    ("adapter", "said"), [("{kind: prompt}", "what adapter prompt learns"), ("{kind: moe}", "what adapter moe learns")]
)
def test_what_has_no_place_in_a_gguf_file_is_refused_before_training(recipe, tmp_path, adapter, said):
    with pytest.raises(ConfigError, match=rf"deploy\.gguf: {said}.*leave deploy\.gguf out"):
        tunesmith.run(recipe, f"initialise.adapter={adapter}", "deploy.gguf=q8_0", folder=tmp_path / "run")
    assert "finetune" not in Run(tmp_path / "run").states


def test_a_gate_that_says_no_keeps_the_model_from_deployment(recipe, tmp_path):
    with pytest.raises(ConfigError, match="did not promote"):
        tunesmith.run(
            recipe, "evaluate.gate.beat=[base]", "finetune.optimizer.learning_rate=0.000005", folder=tmp_path / "r"
        )
    assert (tmp_path / "r" / "report.html").exists()
    assert Run(tmp_path / "r").states["evaluate"]["state"] == "done"


@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_a_base_in_few_bits_is_trained_and_its_merged_model_proved(recipe, tmp_path, precision):
    settings = (
        f"precision={precision}", "finetune.epochs=0.2", "deploy.ungated=true", "deploy.prompts=4", "initialise.adapter.dropout=0",
        "evaluate.baselines=false", "evaluate.general=null", "evaluate.shots=0",
    )  # fmt: skip
    pipeline = open_run(recipe, tmp_path / "run", settings)
    deployed = pipeline.stage("deploy")
    claims = {claim["claim"]: claim for claim in read_json(deployed / "proof.json")["claims"]}
    assert claims[f"trained in {precision} = served"]["rms_gap"] > 0
    assert all(claim["holds"] for claim in claims.values())
    # what was evaluated is what is served: the base as it was rounded, with what was learnt
    evaluated = pipeline.stage("evaluate")
    served, prompts = load(str(deployed / "model")), load_examples(pipeline.stage("prepare").path, "test")
    said = read_json(evaluated / "tuned.json")
    assert answer(served, prompts, Sampling(max_tokens=evaluated.manifest["spec"]["max_tokens"])) == said


@pytest.mark.parametrize("few", ["int8", "nf4"])
def test_a_model_that_is_measured_in_few_bits_is_served_in_them(recipe, tmp_path, few):
    settings = (
        f"evaluate.precision={few}", "finetune.epochs=0.5", "deploy.ungated=true", "deploy.prompts=4", "evaluate.baselines=false",
        "evaluate.general=null", "evaluate.shots=0",
    )  # fmt: skip
    pipeline = open_run(recipe, tmp_path / "run", settings)
    deployed = pipeline.stage("deploy")
    claims = {claim["claim"]: claim for claim in read_json(deployed / "proof.json")["claims"]}
    assert claims[f"greedy answers in {few}, as served, = of the evaluated model"]["equal"] == 4
    models, measured = models_of(deployed, {}), pipeline.stage("evaluate")
    assert {name: one.precision for name, one in models.items()} == {"tuned": few, "base": few}
    prompts = load_examples(pipeline.stage("prepare").path, "test")
    sampling = Sampling(max_tokens=measured.manifest["spec"]["max_tokens"])
    for name, loaded in models.items():
        assert answer(loaded, prompts, sampling) == read_json(measured / f"{name}.json")
    batch, plain = Batch.of(load_split(pipeline.stage("prepare").path, "test")[:4]), load(str(deployed / "model"))
    apart = token_logps(models["tuned"], batch) - token_logps(plain, batch)
    assert (
        0 < float(apart.detach().abs().mean()) < 0.5
    )  # the figures are those of other numbers, not far from the plain ones
    card = (deployed / "model" / "README.md").read_text(encoding="utf-8")
    assert f"weights rounded to {few} as it is served" in card
    asked = pipeline.ask()
    assert read_json(asked / "answers.json") == read_json(measured / "tuned.json")
    other = tmp_path / "other"
    shutil.copytree(tmp_path / "run", other)
    with pytest.raises(ConfigError, match=rf"measured with its merged weights in {few}.*serve it alone"):
        adapters_of([tmp_path / "run", other], [deployed, Run(other).artifact("deploy")])


def test_runs_that_were_measured_in_few_bits_are_not_merged(recipe, tmp_path):
    settings = (
        "evaluate.precision=nf4",
        "finetune.epochs=0.2",
        "evaluate.baselines=false",
        "evaluate.general=null",
        "evaluate.shots=0",
    )
    open_run(recipe, tmp_path / "a", settings).stage("evaluate")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    with pytest.raises(ConfigError, match=r"runs: a was measured with its weights in nf4.*evaluate\.precision=auto"):
        check(read_sources([tmp_path / "a", tmp_path / "b"]), Linear())


def test_int8_is_refused_on_a_gpu_before_training(recipe, tmp_path, monkeypatch):
    pipeline = open_run(recipe, tmp_path / "run", ("evaluate.precision=int8",))
    pipeline.stage("prepare")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ConfigError, match=r"evaluate\.precision: int8 is for CPUs; set it to auto or nf4"):
        pipeline.stage("finetune")


def test_a_model_that_was_measured_in_int8_is_not_served_on_a_gpu(recipe, tmp_path, monkeypatch):
    settings = ("evaluate.precision=int8", "finetune.epochs=0.2", "deploy.ungated=true", "deploy.prompts=2", "evaluate.baselines=false", "evaluate.general=null", "evaluate.shots=0")  # fmt: skip
    deployed = open_run(recipe, tmp_path / "run", settings).stage("deploy")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(ConfigError, match=r"measured in int8, which is for CPUs.*evaluate\.precision=auto"):
        models_of(deployed, {})


@pytest.mark.parametrize("adapter", ["prompt", "memory"])
def test_few_bits_of_what_is_not_merged_are_refused(recipe, tmp_path, adapter):
    with pytest.raises(
        ConfigError, match=rf"evaluate\.precision: int8 rounds merged weights.*{adapter}.*set it to auto"
    ):
        open_run(recipe, tmp_path / "run", ("evaluate.precision=int8", f"initialise.adapter={{kind: {adapter}}}"))


@pytest.mark.parametrize("precision", ["int8", "nf4"])
def test_few_bits_with_an_adapter_that_changes_the_base_are_refused(recipe, tmp_path, precision):
    with pytest.raises(ConfigError, match=rf"{precision} keeps the base as it is.*adapter full.*set precision=bf16"):
        open_run(recipe, tmp_path / "run", (f"precision={precision}", "initialise.adapter={kind: full}"))
    with pytest.raises(ConfigError, match=rf"cannot move a base in {precision}"):
        open_run(recipe, tmp_path / "run", (f"precision={precision}", "finetune.optimizer={kind: hybrid}"))


@pytest.mark.parametrize("kind", ["moe", "memory"])
def test_what_cannot_be_merged_goes_through_a_whole_run_and_is_served(recipe, tmp_path, kind):
    """Deploy proves the folder it wrote against what was trained; it is opened here once more."""
    settings = (
        f"initialise.adapter={{kind: {kind}}}", "finetune.epochs=0.5", "finetune.optimizer.learning_rate=0.05", "deploy.ungated=true",
        "deploy.prompts=4", "evaluate.baselines=false", "evaluate.general=null", "evaluate.shots=0",
    )  # fmt: skip
    pipeline = open_run(recipe, tmp_path / "run", settings)
    deployed = pipeline.stage("deploy")
    claims = {claim["claim"]: claim for claim in read_json(deployed / "proof.json")["claims"]}
    assert all(claim["holds"] for claim in claims.values())
    opened, base = load(str(deployed / "model"), "fp32"), load(pipeline.recipe.model, "fp32")
    batch = Batch.of(load_split(pipeline.run.artifact("prepare").path, "test"))
    with torch.no_grad():
        assert float((token_logps(opened, batch) - token_logps(base, batch)).abs().max()) > 0.01
