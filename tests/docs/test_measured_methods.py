"""The benchmark of methods: what its table says of who learnt, for how long, where and when."""

import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLACE = {"cores": 2, "processor": "Some", "torch": "2", "transformers": "5"}


@pytest.fixture
def benchmark(monkeypatch):
    """A module of the benchmarks, by name."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module


@pytest.mark.parametrize("name", ["wanda", "channels", "reward", "prompt-hybrid"])
def test_committed_counts_are_those_of_the_recipes(benchmark, name):
    """Zeros, channels that are gone, a head and a base that moves are all told from shapes."""
    recipe = benchmark("methods_learning").recipe_of(name, seed=1)
    committed = next(run for run in benchmark("methods_table").kept(name)["runs"] if run["seed"] == 1)
    counts = benchmark("methods_learning").learning(recipe)
    assert counts == {key: committed[key] for key in ("trainable", "moved", "recovering") if key in committed}


def test_what_learns_is_told_part_by_part(benchmark):
    learns = benchmark("methods_table").learns
    half = [{"trainable": count} for count in (1000, 3000, 2000)]
    assert learns(half) == "2,000"
    assert learns([{"trainable": 1000, "moved": 9000}]) == "1,000 and 9,000 by estimate"
    assert learns([{"trainable": 1000, "recovering": 8000}]) == "1,000, then 8,000"


def test_days_and_threads_are_those_of_all_runs(benchmark):
    def run(seed, threads, date):
        return {"seed": seed, "threads": threads, "date": date, "environment": PLACE}

    base = {"runs": [run(0, 2, "2026-11-22"), run(1, 1, "2026-11-22")]}
    bare = {"runs": [run(0, 1, "2026-11-23")], "cost": {"date": "2026-11-24"}}
    noted = {"runs": [run(1, 1, "2026-11-22")], "cost": {"date": "2026-11-25", "environment": PLACE, "threads": 2}}
    said = benchmark("methods_table").provenance({"base": base, "bare": bare, "noted": noted})
    place = "2 cores of Some, torch 2, transformers 5"
    assert said == (
        f"Measured on {place}, 2026-11-22 to 2026-11-23, each training in one thread, but `base` with seed 0 in 2 threads."
        f" Speeds: 1 on {place}, 2026-11-25, in 2 threads."
        " Speeds: 1 of 2026-11-24, without a note of machine and threads."
    )


def test_a_cost_says_where_it_was_taken(benchmark, monkeypatch):
    methods, written = benchmark("methods"), {}
    rates = {"base": 500.0, "dora": 400.0}
    monkeypatch.setattr(methods, "apart", lambda name, _: {"seconds": 1.0, "rate": rates[name], "environment": PLACE, "threads": 1})  # fmt: skip
    monkeypatch.setattr(methods, "kept", lambda name: {"runs": []})
    monkeypatch.setattr(methods, "keep", written.__setitem__)
    methods.costs(["dora"])
    cost = written["dora"]["cost"]
    assert (cost["environment"], cost["threads"]) == (PLACE, 1)
    assert (cost["method"], cost["lora"]) == ({"seconds": 1.0, "rate": 400.0}, {"seconds": 1.0, "rate": 500.0})
