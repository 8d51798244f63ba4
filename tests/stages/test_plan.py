"""The plan: the recipe first, advice that really helps, limits of the machine respected."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from io import StringIO
from unittest.mock import ANY

import numpy as np
import pytest
from rich.console import Console
from transformers import LlamaConfig
from whole_runs import write_recipe

from tunesmith.base import DataError, MachineError
from tunesmith.base.files import read_json, write_json
from tunesmith.data.example import Row, Sequence
from tunesmith.methods.adapters.full import Full
from tunesmith.stages.initialise import Initialise, describe
from tunesmith.stages.machine import available_memory, measure_speed
from tunesmith.stages.pipeline import open_run
from tunesmith.stages.plan import alternatives, check_memory, duration, plan, prepared, table
from tunesmith.stages.plan import plans as planned
from tunesmith.stages.recipe import Recipe

ROWS = [
    Row(
        f"rows:{number}",
        (Sequence(np.random.default_rng(number).integers(3, 380, 64).astype(np.int32), np.arange(64) > 50),),
    )
    for number in range(8)
]


@pytest.fixture(scope="module")
def recipe(tmp_path_factory) -> Recipe:
    """A recipe over a model of which there is nothing but the configuration."""
    return of_depth(2, tmp_path_factory.mktemp("model"))


def of_depth(layers: int, folder) -> Recipe:
    LlamaConfig(
        vocab_size=384,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        architectures=["LlamaForCausalLM"],
    ).save_pretrained(folder)
    return Recipe.model_validate({"model": str(folder), "precision": "fp32", "prepare": {"source": "rows.jsonl"}})


@pytest.fixture(scope="module")
def plans(recipe):
    return plan(recipe, ROWS)


def overridden_by(recipe: Recipe, changes: dict) -> dict:
    tree = recipe.model_dump(mode="json")
    for path, value in changes.items():
        stage, field = path.split(".")
        tree[stage][field] = value
    return tree


def limited(plans, available):
    return [replace(each, estimate=replace(each.estimate, available=available)) for each in plans]


def test_the_recipe_comes_first_and_alternatives_name_their_overrides(recipe, plans):
    assert plans[0].settings == ()
    assert plans[0].method == "fp32 lora sft adamw"
    assert [each.settings for each in plans[1:]] == alternatives(recipe)
    full = next(each for each in plans if each.settings == ("initialise.adapter.kind=full",))
    assert full.estimate.learning == full.estimate.parameters > plans[0].estimate.learning


def test_smaller_micro_batches_need_less(plans):
    peaks = {each.settings: each.estimate.peak_bytes for each in plans}
    assert peaks[()] > peaks["finetune.micro_batch=4",] > peaks["finetune.micro_batch=1",]


def test_memory_that_suffices_is_accepted_without_looking_at_alternatives(plans):
    def one():
        yield plans[0]
        raise AssertionError("looked on")

    assert check_memory(one()) is plans[0]


def test_refusal_names_only_settings_that_fit(plans):
    peaks = {each.settings: each.estimate.needed for each in plans}
    between = (peaks["finetune.micro_batch=4",] + peaks["finetune.micro_batch=1",]) // 2
    with pytest.raises(MachineError) as caught:
        check_memory(limited(plans, between))
    assert str(caught.value).endswith("GB free; set finetune.micro_batch=1; see `tunesmith plan`")
    assert "\n" not in str(caught.value)


def test_a_training_that_ends_when_its_tokens_are_spent_is_counted_until_then(recipe):
    changes = {"finetune.epochs": 4, "finetune.schedule": {"shape": "constant", "warmup": 1}}

    def first(rows=ROWS, **more):
        return plan(Recipe.model_validate(overridden_by(recipe, changes | more)), rows)[0].estimate

    whole = first()
    most = whole.distinct_tokens // 4
    assert whole.steps == 4
    assert (first(**{"finetune.most_tokens": most}).steps, first(**{"finetune.most_tokens": most + 1}).steps) == (1, 2)
    assert first(**{"finetune.most_tokens": most}).distinct_tokens == most
    assert first(**{"finetune.most_tokens": 100 * most}) == replace(whole, seconds=ANY, available=ANY, resident=ANY)
    tokens = [row.sequences[0].tokens for row in ROWS]
    alike = [replace(row, sequences=(replace(row.sequences[0], tokens=np.append(tokens[0][:32], own[32:])),)) for row, own in zip(ROWS, tokens, strict=True)]  # fmt: skip
    most = first(alike).distinct_tokens // 4
    assert first(alike, **{"finetune.most_tokens": most + 1, "finetune.micro_batch": 1}).steps == 2  # as in one pass


def test_a_hungrier_adapter_is_offered_lora(recipe):
    full = recipe.model_copy(update={"initialise": Initialise(adapter=Full())})
    assert alternatives(full)[-2:] == [
        ("initialise.adapter.kind=lora",),
        ("initialise.adapter.kind=lora", "finetune.micro_batch=1"),
    ]


def test_int8_is_offered_no_adapter_that_changes_the_base(recipe):
    quantised = recipe.model_copy(update={"precision": "int8"})
    found = [setting for (setting,) in alternatives(quantised)]
    assert found == ["finetune.activation_checkpointing=true", "finetune.micro_batch=4", "finetune.micro_batch=1"]


def test_refusal_says_when_nothing_helps(plans):
    with pytest.raises(MachineError, match=r"its alternatives need at least 0\.\d GB, so take a smaller model"):
        check_memory(limited(plans, 1000))


def test_table_shows_every_plan(plans):
    console = Console(width=200, record=True, file=StringIO())
    console.print(table(limited(plans, plans[0].estimate.needed - 1)))
    lines = console.export_text().splitlines()
    assert "8 rows" in lines[0]
    assert "as given" in lines[2]
    assert lines[2].rstrip().endswith("no")
    assert len(lines) == 2 + len(plans)


def test_rows_are_those_that_the_run_would_prepare(tmp_path):
    source = tmp_path / "rows.jsonl"
    source.write_text(
        "".join(json.dumps({"prompt": f"What is {n}?", "answer": f"It is {n}."}) + "\n" for n in range(40))
    )
    rows = prepared(
        Recipe.model_validate({"prepare": {"source": str(source), "test_fraction": 10, "validation_fraction": 5}})
    )
    assert len(rows) == 25
    assert all(row.supervised for row in rows)


def test_rows_that_cannot_be_used_are_listed_where_they_are_kept(tmp_path):
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps({"prompt": f"{n}?", "answer": f"{n}."}) + "\n{broken\n" for n in range(9)))
    with pytest.raises(DataError) as caught:
        prepared(Recipe.model_validate({"prepare": {"source": str(source)}}))
    assert "not valid JSON" in str(caught.value)
    assert str(caught.value).endswith("run `tunesmith prepare` to have all listed")
    assert "tunesmith-plan-" not in str(caught.value)


@pytest.mark.parametrize(
    ("limit", "used", "files"),
    [
        (5000, 2000, ("memory.max", "memory.current")),
        (5000, 2000, ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")),
    ],
)
def test_a_control_group_limits_memory(tmp_path, limit, used, files):
    unlimited = available_memory(tmp_path)
    for name, value in zip(files, (limit, used), strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{value}\n")
    assert available_memory(tmp_path) == limit - used < unlimited
    (tmp_path / files[0]).write_text("max\n" if files[0] == "memory.max" else str(2**63 - 4096))
    assert available_memory(tmp_path) > limit


def test_a_limit_on_the_address_space_limits_memory():
    code = (
        "import resource, psutil; from tunesmith.stages.machine import available_memory;"
        "own = psutil.Process().memory_info().vms; resource.setrlimit(resource.RLIMIT_AS, (own + 2**29, -1));"
        "print(available_memory())"
    )
    free = int(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)
    assert 2**28 < free <= 2**29


def test_speed_is_measured_in_plausible_units():
    speed = measure_speed(64, 128, seconds=0.05)
    assert 1e8 < speed.fp32 < 1e16
    assert 1e8 < speed.bandwidth < 1e14
    assert speed.seconds(0, 0, False) == speed.operation
    assert speed.seconds(int(speed.bf16), 0, True) == pytest.approx(1 + speed.operation)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.42, "0.42 s"), (80, "80 s"), (430, "7.2 min"), (7300, "2 h"), (900_000, "10 d")]
)
def test_durations_read_well(seconds, text):
    assert duration(seconds) == text


def test_the_probe_of_the_machine_limits_the_cache_of_products_before_it_multiplies():
    """oneDNN reads the limit at the first product of a process; set later, a run's memory grows with every new length."""
    code = (
        "import os; from tunesmith.stages.machine import measure_speed\n"
        "measure_speed(8, 8, 0.01); assert int(os.environ['ONEDNN_PRIMITIVE_CACHE_CAPACITY']) < 1024"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_auto_computes_layers_again_only_where_memory_does_not_suffice(tmp_path, monkeypatch):
    recipe = of_depth(12, tmp_path)
    plain, again = (
        next(each for each in plan(recipe, ROWS) if each.settings == settings).estimate.needed
        for settings in ((), ("finetune.activation_checkpointing=true",))
    )
    assert again < plain
    for free, expected in ((plain, False), ((plain + again) // 2, True)):
        monkeypatch.setattr("tunesmith.stages.plan.available_memory", lambda free=free: free)
        monkeypatch.setattr("tunesmith.stages.plan.resident_memory", lambda: 400 << 20)
        found = check_memory(planned(recipe, ROWS))
        assert found.estimate.checkpointing == expected
    never = override_field(recipe, False)
    with pytest.raises(MachineError, match=r"finetune\.activation_checkpointing=true"):
        check_memory(planned(never, ROWS))


def test_a_plan_that_was_kept_is_held_against_the_memory_that_is_free_now(tmp_path, tiny_folder, monkeypatch):
    path, settings, asked = write_recipe(tmp_path, tiny_folder), ("evaluate.general=null",), []

    def plans_of(recipe, rows):
        asked.append(recipe.finetune.activation_checkpointing)
        return planned(recipe, rows)

    monkeypatch.setattr("tunesmith.stages.fitted.plans", plans_of)
    open_run(path, tmp_path / "run", settings).stage("initialise")
    open_run(path, tmp_path / "run", settings).stage("initialise")
    assert asked == ["auto"]
    for place in ("plan", "fitted"):
        monkeypatch.setattr(f"tunesmith.stages.{place}.available_memory", lambda: 1000)
    for state, wanted in ((None, "auto"), ("interrupted", False), ("done", None)):
        run = open_run(path, tmp_path / "run", settings)
        if state is not None:
            write_json(run.run.path / "stages.json", {**run.run.states, "finetune": {"state": state, "artifact": "x"}})
        if state == "done":  # what is trained needs no room
            run.initialise()
            continue
        with pytest.raises(MachineError, match="training needs about"):
            run.initialise()
        assert asked[-1] == wanted  # a training that has begun goes on as it was planned
    assert len(asked) == 3


def test_a_model_that_was_written_anew_is_planned_anew(tmp_path, tiny_folder, build):
    """Though it is called as before and reads the same tokens."""
    own = shutil.copytree(tiny_folder, tmp_path / "own")
    path, settings = write_recipe(tmp_path, own), ("evaluate.general=null",)

    def planned_bytes():
        open_run(path, tmp_path / "run", settings).stage("initialise")
        return read_json(tmp_path / "run" / "plan.json")["estimate"]["peak_bytes"]

    first = planned_bytes()
    assert planned_bytes() == first
    build("llama", seed=7, intermediate_size=4096).model.save_pretrained(own)
    assert planned_bytes() - first > 2 * 3 * 4 * 16 * 4000  # bytes of its matrices


def override_field(recipe: Recipe, value: bool) -> Recipe:
    tune = recipe.finetune.model_copy(update={"activation_checkpointing": value})
    return recipe.model_copy(update={"finetune": tune})


def test_a_model_without_fused_operations_is_said_to_be_one(build):
    plain = build("gpt2", n_embd=16, n_head=4, n_layer=2, n_positions=128)
    assert any("no fused form of gpt2" in note for note in describe(plain, False)["notes"])
    assert describe(build("llama"), False)["notes"] == []
