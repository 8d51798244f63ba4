"""Merged runs: what is written is what was merged, every source's task is measured, and what cannot be one run is refused."""

import json
import shutil

import pytest
import torch

import tunesmith
from tunesmith.base import Artifact, ConfigError, DataError, Output, ProofError, Run, Stage
from tunesmith.base.files import read_json
from tunesmith.methods.adapters import trainable
from tunesmith.methods.adapters.dora import DoRA
from tunesmith.methods.adapters.full import Full
from tunesmith.methods.merging.peft_file import read_corrections
from tunesmith.methods.merging.ties import Ties
from tunesmith.models.load import load
from tunesmith.stages.merge import Merge, merge
from tunesmith.stages.merged import Merger, merged_from
from tunesmith.stages.pipeline import open_any, open_run

COLOURS = ["red", "green", "blue", "black"]
OPEN = ("deploy.ungated=true",)


@pytest.fixture(scope="module")
def trained(tiny_folder, tmp_path_factory):
    """Makes finished runs, each on a small task of its own."""
    base = tmp_path_factory.mktemp("trained")

    def make(name, *overrides, shift=0):
        folder = base / name
        folder.mkdir()
        rows = [
            {"messages": [{"role": "user", "content": f"{name}\u2028{n}?"}, {"role": "assistant", "content": COLOURS[(n + shift) % 4]}]}
            for n in range(32)
        ]  # fmt: skip
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        recipe = {
            "model": str(tiny_folder),
            "precision": "fp32",
            "prepare": {"source": "rows.jsonl", "test_fraction": 8, "validation_fraction": 4, "cleaners": []},
            "initialise": {"adapter": {"rank": 4}},
            "finetune": {"epochs": 1.0, "batch": 5, "optimizer": {"learning_rate": 0.02}},
            "evaluate": {
                "graders": [{"kind": "exact"}, {"kind": "perplexity"}, {"kind": "average_precision"}], "max_tokens": 4, "shots": 0, "baselines": False, "general": None,
                "gate": {"margin": None, "beat": []},
            },
        }  # fmt: skip
        (folder / "recipe.yaml").write_text(json.dumps(recipe))
        tunesmith.evaluate(folder / "recipe.yaml", *overrides, folder=base / "runs" / name)
        return base / "runs" / name

    return make


@pytest.fixture(scope="module")
def pair(trained):
    return trained("a"), trained("b", "initialise.adapter.rank=2", "evaluate.gate.beat=[base]", shift=1)


@pytest.fixture(scope="module")
def merged(pair, tmp_path_factory):
    """The folder of two runs merged by concatenation."""
    folder = tmp_path_factory.mktemp("merged") / "ab"
    return tunesmith.merge(*pair, folder=folder, settings=("merge.weights=[0.6,0.4]", *OPEN))


def weights_of(folder):
    return dict(load(str(folder), "fp32").model.named_parameters())


class TestWhatIsWritten:
    def test_the_model_is_the_base_and_the_weighted_sum_of_what_the_runs_added(self, pair, merged, tiny_folder):
        runs = [read_corrections(Run(run).artifact("finetune") / "adapter") for run in pair]
        base, found = weights_of(tiny_folder), weights_of(Run(merged).artifact("deploy") / "model")
        adapter = read_json(Run(merged).artifact("merge") / "adapter" / "adapter_config.json")
        assert adapter["r"] == 4 + 2
        for name, weight in base.items():
            path = name.removesuffix(".weight")
            expected = weight.detach().clone()
            if path in runs[0]:
                expected += 0.6 * runs[0][path].delta + 0.4 * runs[1][path].delta
            torch.testing.assert_close(found[name].detach(), expected, atol=1e-5, rtol=1e-5)
        changed = [name for name in base if not torch.equal(base[name], found[name])]
        assert len(changed) == len(runs[0]) == 14

    def test_its_lineage_leads_to_the_trainings(self, pair, merged):
        artifact = Run(merged).artifact("merge")
        trained = [Run(run).artifact("finetune") for run in pair]
        assert [one["id"] for one in artifact.manifest["parents"]] == [one.id for one in trained]
        assert artifact.manifest["spec"]["weights"] == [0.6, 0.4]
        claims = read_json(artifact / "proof.json")["claims"]
        assert len(claims) == 2
        assert all(claim["holds"] for claim in claims)
        assert artifact.metrics["kept"] == 1.0
        card = (Run(merged).artifact("deploy") / "model" / "README.md").read_text()
        assert "* a, with weight 0.6\n* b, with weight 0.4\n" in card

    def test_the_same_command_computes_nothing_again(self, pair, merged):
        before = {path: path.stat().st_mtime_ns for path in merged.rglob("*.safetensors")}
        again = tunesmith.merge(*pair, folder=merged, settings=("merge.weights=[0.6,0.4]", *OPEN))
        assert before == {path: path.stat().st_mtime_ns for path in again.rglob("*.safetensors")}
        assert isinstance(open_any(merged), Merger)
        assert tunesmith.deploy(merged).path == Run(merged).artifact("deploy").path

    @pytest.mark.parametrize("method", ["svd", "ties", "dare_ties"])
    def test_a_cut_says_what_it_kept(self, pair, tmp_path, method):
        settings = (f"merge.method.kind={method}", "merge.method.rank=3")
        made = Merger(merged_from(list(pair), settings), Run(tmp_path / "ab")).locked("merge")
        assert made.metrics["rank"] == 3
        assert 0.2 < made.metrics["kept"] < 1
        assert made.metrics["weights"] == ([0.5, 0.5] if method == "svd" else [1.0, 1.0])

    def test_a_recipe_names_runs_as_seen_from_its_folder(self, pair, tmp_path):
        (tmp_path / "ab.yaml").write_text("runs: [a, ../b]\nmerge: {method: {kind: ties}, weights: [1, 2]}\n")
        found = open_any(tmp_path / "ab.yaml", tmp_path / "r", ("merge.method.density=0.3",))
        assert isinstance(found, Merger)
        assert found.recipe.runs == (tmp_path / "a", tmp_path.parent / "b")
        assert found.recipe.merge == Merge(method=Ties(density=0.3), weights=(1.0, 2.0))

    def test_runs_that_cancel_each_other_are_no_artifact(self, pair, tiny_folder, tmp_path):
        learnt = Run(pair[0]).artifact("finetune")
        out = Output(tmp_path, Run(tmp_path).events)
        with pytest.raises(ProofError, match="the runs do not cancel each other"):
            merge(
                Merge(weights=(0.7, -0.7)),
                learnt,
                learnt,
                out=out,
                model=str(tiny_folder),
                precision="fp32",
                adapters=[],
                seed=0,
            )


class TestEvaluation:
    def test_every_task_is_measured_with_paired_intervals(self, pair, merged):
        metrics = Run(merged).artifact("evaluate").metrics
        assert len(metrics["tasks"]) == 2
        for run, found in zip(pair, metrics["tasks"].values(), strict=True):
            own = Run(run).artifact("evaluate").metrics
            assert list(found["systems"]) == ["base", "own", "merged"]
            assert found["grader"] == "exact"
            assert found["systems"]["own"]["value"] == own["systems"]["tuned"]["value"]
            assert found["systems"]["base"]["value"] == own["systems"]["base"]["value"]
            for other in ("base", "own"):
                apart = found["differences"][f"merged - {other}"]
                assert apart["low"] <= apart["value"] <= apart["high"]
                assert apart["n"] == 8

    def test_the_figures_of_a_run_merged_with_nothing_else_are_its_own(self, pair, tmp_path):
        made = Merger(merged_from(list(pair[:1]), ()), Run(tmp_path / "a")).locked("evaluate")
        (results,) = read_json(made / "results.json").values()
        for block in results["task"]["graders"].values():
            assert block["systems"]["merged"]["value"] == pytest.approx(block["systems"]["own"]["value"], rel=1e-4)
            apart = block["differences"]["merged - own"]["value"]
            assert abs(apart) <= 1e-4 * block["systems"]["own"]["value"]
        own = read_json(Run(pair[0]).artifact("evaluate") / "results.json")["task"]["graders"]["perplexity"]["systems"]
        found = results["task"]["graders"]["perplexity"]["systems"]
        assert found["own"]["value"] == pytest.approx(own["tuned"]["value"], rel=1e-6)
        assert found["base"]["value"] == pytest.approx(own["base"]["value"], rel=1e-6)
        assert abs(found["own"]["value"] / found["base"]["value"] - 1) > 0.01

    def test_general_rows_are_part_of_what_it_is_made_from(self, pair, tmp_path):
        run, general = shutil.copytree(pair[0], tmp_path / "a"), tmp_path / "general.jsonl"
        row = {"messages": [{"role": "user", "content": "Sky?"}, {"role": "assistant", "content": "blue"}]}
        general.write_text(json.dumps(row) + "\n")
        tunesmith.evaluate(run, f"evaluate.general={general}")
        first = Merger(merged_from([run], ()), Run(tmp_path / "r")).locked("evaluate")
        assert [one["name"] for one in first.manifest["inputs"]] == ["general.jsonl"]
        row["messages"][1]["content"] = "black"
        general.write_text(json.dumps(row) + "\n")
        again = Merger(merged_from([run], ()), Run(tmp_path / "r")).locked("evaluate")
        assert again.path != first.path
        general.unlink()
        with pytest.raises(DataError, match=r"general\.jsonl"):
            Merger(merged_from([run], ()), Run(tmp_path / "r2")).locked("merge")

    def test_the_table_is_written(self, merged):
        lines = (Run(merged).artifact("evaluate") / "comparison.md").read_text().splitlines()
        assert lines[0] == "| run | system | score | interval | merged is better by | interval |"
        assert [line.split("|")[2].strip() for line in lines[2:8]] == ["base", "own", "merged"] * 2

    def test_a_gate_that_says_no_names_the_run(self, pair, merged):
        recipe = merged_from(list(pair), ("merge.weights=[0.6,0.4]",))
        with pytest.raises(ConfigError, match=r"did not promote this model: b: exact rests on 8 rows"):
            Merger(recipe, Run(merged)).deploy()


def test_differences_of_weights_are_merged(build, tiny_folder, tmp_path):
    """A run that changed the base itself and one that turned its weights: each weight moves by the weighted sum."""
    adapters, runs, learnt = [Full(), DoRA(rank=2)], [], []
    for number, adapter in enumerate(adapters):
        loaded = load(str(tiny_folder), "fp32")
        adapter.attach(loaded, number)
        with torch.no_grad():
            for parameter in trainable(loaded.model).values():
                parameter += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
        adapter.save(loaded, tmp_path / f"{number}" / "adapter")
        learnt.append(Artifact(tmp_path / f"{number}", {}))
        adapter.merge(loaded)
        runs.append(dict(loaded.model.named_parameters()))
    out = Output(tmp_path, Run(tmp_path).events)
    trees = [adapter.model_dump(mode="json") for adapter in adapters]
    merge(
        Merge(weights=(0.7, -0.5)), *learnt, out=out, model=str(tiny_folder), precision="fp32", adapters=trees, seed=0
    )
    assert out.metrics["adapter"] == {"kind": "full"}
    found = weights_of(tmp_path / "adapter")
    for name, weight in weights_of(tiny_folder).items():
        expected = weight + 0.7 * (runs[0][name] - weight) - 0.5 * (runs[1][name] - weight)
        torch.testing.assert_close(found[name], expected, atol=1e-6, rtol=1e-6)


class TestRefusals:
    @pytest.fixture(autouse=True)
    def without_models(self, monkeypatch, pair):
        """Nothing heavy is loaded before it is refused."""
        import tunesmith.stages.comparison
        import tunesmith.stages.merge

        def never(*given):
            raise AssertionError(given)

        monkeypatch.setattr(tunesmith.stages.merge, "load_exact", never)
        monkeypatch.setattr(tunesmith.stages.comparison, "load", never)

    def refused(self, match, *runs, folder, settings=()):
        with pytest.raises(ConfigError, match=match):
            tunesmith.merge(*runs, folder=folder, settings=settings)

    def test_settings(self, pair, tmp_path):
        self.refused("there are 3, for 2 runs", *pair, folder=tmp_path, settings=("merge.weights=[1,2,3]",))
        self.refused(
            "'teis' does not exist; did you mean 'ties'", *pair, folder=tmp_path, settings=("merge.method.kind=teis",)
        )
        self.refused("these runs have 4, 2; take cat", *pair, folder=tmp_path, settings=("merge.method.kind=linear",))
        self.refused("given twice", pair[0], pair[0], folder=tmp_path)
        self.refused("is not the folder of a run", tmp_path / "nothing", folder=tmp_path)

    def test_runs_that_are_merged_or_not_as_they_were_measured(self, merged, pair, tmp_path):
        self.refused("was merged from other runs itself", merged, folder=tmp_path)
        with pytest.raises(ConfigError, match="was merged from other runs, which have what you ask for"):
            open_run(merged)
        with pytest.raises(ConfigError, match="has no stage prepare; its stages are merge, evaluate, deploy"):
            tunesmith.prepare(merged)
        stale = shutil.copytree(pair[0], tmp_path / "stale")
        Run(stale).once(Stage("finetune", 2, lambda spec, out: (out / "new").write_text("")), Merge())
        self.refused("was changed since it was evaluated", pair[1], stale, folder=tmp_path / "r")
        with pytest.raises(ConfigError, match="has no stage sample"):
            open_any(merged).before("sample")

    def test_a_pruned_run(self, pair, tmp_path):
        pruned = shutil.copytree(pair[0], tmp_path / "pruned")
        run = Run(pruned)
        made = run.once(Stage("prune", 1, lambda spec, out: (out / "model").write_text("")), Merge())
        parents = [*(run.artifact(stage) for stage in ("prepare", "initialise", "finetune")), made]
        run.once(Stage("evaluate", 1, lambda spec, *parents, out: (out / "x").write_text("")), Merge(), *parents)
        self.refused(r"was pruned, .* give a run with prune\.method=null", pair[1], pruned, folder=tmp_path / "r")

    def test_the_folder_of_a_run_and_nothing_in_it_is_changed(self, pair, tmp_path):
        before = (pair[0] / "resolved.yaml").read_text()
        self.refused("holds a run that was not merged; choose another folder", *pair, folder=pair[0])
        assert (pair[0] / "resolved.yaml").read_text() == before
        self.refused("these runs have 4, 2", *pair, folder=tmp_path / "r", settings=("merge.method.kind=linear",))
        assert not (tmp_path / "r" / "resolved.yaml").exists()
