"""Rows to learn from are chosen after the others are held out, every one of them is accounted for, and runs say how it was done."""

import json
from collections import Counter

import numpy as np
import pytest
import yaml

from tunesmith.base import ConfigError, DataError, Run
from tunesmith.base.files import read_json
from tunesmith.data.prepared import load_examples, load_split
from tunesmith.data.retrieval import embedding
from tunesmith.methods.selection import Chosen
from tunesmith.methods.selection.random import Random
from tunesmith.models import load as loading
from tunesmith.stages.compare import pipelines, variants
from tunesmith.stages.pipeline import open_run
from tunesmith.stages.prepare import STAGE, Prepare
from tunesmith.stages.report import write
from tunesmith.stages.report.account import selected_by


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """Sixty rows, three of which nothing can be learnt from within 60 tokens."""
    lines = [
        {"prompt": f"Shade {number}? {'word ' * (70 if number % 20 == 3 else 3)}", "answer": ["red", "green", "blue"][min(2, number % 6)]}
        for number in range(60)
    ]  # fmt: skip
    path = tmp_path_factory.mktemp("select") / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def prepared(source, folder, select, seed=0, tokenizer="smollm2-135m", **context):
    spec = Prepare(
        source=str(source), test_fraction=9, validation_fraction=6, max_tokens=60, cleaners=(), select=select
    )
    (folder / "run").mkdir(exist_ok=True)
    return Run(folder / "run").once(STAGE, spec, tokenizer_name=tokenizer, seed=seed, **context)


def origins(artifact, split):
    return [example.origin for example in load_examples(artifact.path, split)]


SELECTORS = (
    {"kind": "random"},
    {"kind": "stratified"},
    {"kind": "diversity", "embedding": "svd"},
    {"kind": "difficulty", "measure": "el2n"},
    {"kind": "distinct"},
)


@pytest.mark.parametrize("select", SELECTORS, ids=lambda select: select["kind"])
def test_only_the_rows_to_learn_from_are_fewer(source, tmp_path, tiny_folder, select):
    whole = prepared(source, tmp_path, None)
    found = prepared(source, tmp_path, {**select, "size": 20}, tokenizer=str(tiny_folder))
    for split in ("test", "validation"):
        assert origins(found, split) == origins(whole, split)
    chosen = origins(found, "train")
    assert len(chosen) == len(load_split(found.path, "train")) == 20
    assert [origin for origin in origins(whole, "train") if origin in chosen] == chosen
    counts = read_json(found / "summary.json")["counts"]
    lines = [json.loads(line) for line in (found / "ledger.jsonl").read_text().splitlines()]
    states = Counter(line["state"] for line in lines)
    assert {state: count for state, count in counts.items() if state in states} == states
    assert states["unchosen"] == found.metrics["unchosen"] == len(origins(whole, "train")) - 20
    assert {line["reason"] for line in lines if line["state"] == "unchosen"} == {f"not chosen: by {select['kind']}"}
    assert states["quarantined"] == 3  # bad rows are bad whether chosen or not, and none of them is
    told = read_json(found / "summary.json")["selection"]
    assert (told["kind"], told["rows"], told["of"]) == (select["kind"], 20, len(origins(whole, "train")))
    assert f"20 of {told['of']} rows were chosen to learn from, by {select['kind']}" in selected_by(told)


def test_rows_are_drawn_by_a_seed_of_their_own(source, tmp_path):
    first, again, other = (prepared(source, tmp_path, {"kind": "random", "size": 0.5}, draw=draw) for draw in (0, 0, 1))
    assert first.path == again.path
    assert origins(first, "train") != origins(other, "train")
    assert origins(first, "test") == origins(other, "test")


def test_trainings_by_other_seeds_draw_other_rows_and_hold_out_the_same(source, tmp_path, tiny_folder):
    recipe = tmp_path / "recipe.yaml"
    tree = {"model": str(tiny_folder), "prepare": {"source": str(source), "max_tokens": 60, "cleaners": []}}
    recipe.write_text(yaml.safe_dump(tree))
    _, varied = variants(recipe, (), ["prepare.select={kind: random, size: 20}"])
    made = [pipeline.prepare() for pipeline in pipelines(varied, tmp_path / "run", 2)]
    assert origins(made[0], "train") != origins(made[1], "train")
    assert origins(made[0], "test") == origins(made[1], "test")
    assert "draw" not in open_run(recipe, tmp_path / "run").prepare().manifest["context"]
    _, undrawn = variants(recipe, (), ["prepare.select={kind: difficulty, size: 20}"])
    assert len({pipeline.prepare().path for pipeline in pipelines(undrawn, tmp_path / "run", 2)}) == 1


def test_what_a_choice_is_made_by_is_part_of_its_key(source, tmp_path, tiny_folder, monkeypatch):
    """Where a package comes or the machine is another, rows are chosen anew, and the manifest says by what they were."""
    recipe = tmp_path / "recipe.yaml"
    tree = {"model": str(tiny_folder), "prepare": {"source": str(source), "max_tokens": 60, "cleaners": []}}
    recipe.write_text(yaml.safe_dump(tree))

    def made(select):
        return open_run(recipe, tmp_path / "run", (f"prepare.select={select}",)).prepare()

    monkeypatch.setattr(embedding, "find_spec", lambda name: None)
    found = made("{kind: diversity, size: 20}")
    assert found.manifest["spec"]["select"]["embedding"] == "svd"
    assert made("{kind: diversity, size: 20, embedding: svd}").path == found.path
    keys = set()
    for here in ("fp32", "bf16"):
        monkeypatch.setattr(loading, "resolve_precision", lambda given, here=here: here if given == "auto" else given)
        found = made("{kind: difficulty, size: 20}")
        assert found.manifest["spec"]["select"]["precision"] == here
        assert made(f"{{kind: difficulty, size: 20, precision: {here}}}").path == found.path
        keys.add(found.path)
    assert len(keys) == 2


def test_the_report_says_how_rows_were_chosen(source, tmp_path, tiny_folder):
    recipe = tmp_path / "recipe.yaml"
    select = {"kind": "distinct", "size": 20}
    tree = {
        "model": str(tiny_folder),
        "prepare": {"source": str(source), "max_tokens": 60, "cleaners": [], "select": select},
    }
    recipe.write_text(yaml.safe_dump(tree))
    pipeline = open_run(recipe, tmp_path / "run")
    found = pipeline.locked("prepare").metrics
    page = write(pipeline.run).read_text()
    assert f"{found['quarantined']} left out, {found['unchosen']} not chosen. None is unaccounted for." in page
    assert (
        f"20 of {20 + found['unchosen']} rows were chosen to learn from, by distinct (threshold 0.8, near duplicates"
        in page
    )


def test_rows_that_were_not_chosen_do_not_hide_that_chosen_ones_are_cut_off(tmp_path, monkeypatch):
    """Ten of sixty rows are cut off, which is not too many; a choice that takes all of these and two others is."""
    lines = [{"prompt": f"Shade {n}?", "answer": "word " * (70 if n < 10 else 2)} for n in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    about = {
        "source": str(tmp_path / "rows.jsonl"),
        "test_fraction": 0,
        "validation_fraction": 0,
        "max_tokens": 60,
        "cleaners": (),
    }
    (tmp_path / "run").mkdir()

    def made(**more):
        return Run(tmp_path / "run").once(STAGE, Prepare(**about, **more), tokenizer_name="smollm2-135m", seed=0)

    assert made().metrics["truncated"] == 10
    monkeypatch.setattr(Random, "choose", lambda self, pool, count, seed: Chosen(np.arange(count)))
    with pytest.raises(
        DataError, match=r"10 of 12 rows chosen to learn from are longer than prepare\.max_tokens=60; raise it"
    ):
        made(select={"kind": "random", "size": 12})
    assert made(select={"kind": "random", "size": 12}, refuse_above=0.9).metrics["train_rows"] == 12
    assert made(select={"kind": "random", "size": 51}).metrics["truncated"] == 10


def test_what_cannot_be_chosen_is_refused(source, tmp_path):
    with pytest.raises(DataError, match=r"prepare\.select: 99 rows are wanted, and there are 4\d to learn from"):
        prepared(source, tmp_path, {"kind": "random", "size": 99})
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"prepare": {"source": str(source)}}))
    for setting, message in (
        ("prepare.select={kind: best}", "best"),
        ("prepare.select={kind: random, size: 0}", "greater than 0"),
        ("prepare.select={kind: random, by: answer}", "by: no such field"),
    ):
        with pytest.raises(ConfigError, match=message):
            open_run(recipe, None, (setting,))
