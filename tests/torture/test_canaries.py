"""Random numbers shown once, four and sixteen times: what is remembered is reported, what was never shown stays at chance."""

import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from subjects import demonstrations, write_rows

from tunesmith.base import ConfigError
from tunesmith.data.canaries import Canaries
from tunesmith.data.prepared import load_examples
from tunesmith.grading.exposure import CHANCE, exposure, threshold
from tunesmith.stages.pipeline import open_run
from tunesmith.stages.report import write

REPEAT = (1, 4, 16)


def trained(folder: Path, model: Path, seed: int, **canaries: object) -> dict:
    """What a training of a tiny model is measured to remember."""
    folder.mkdir()
    write_rows(folder / "rows.jsonl", demonstrations(40))
    recipe = {
        "model": str(model), "precision": "fp32", "seed": seed, "prepare": {"source": "rows.jsonl", "test_fraction": 4, "validation_fraction": 4, "cleaners": [], "canaries": canaries},
        "initialise": {"adapter": {"kind": "full"}}, "finetune": {"epochs": 6.0, "batch": 8, "optimizer": {"learning_rate": 0.01}},
        "evaluate": {"graders": [{"kind": "exact"}], "max_tokens": 2, "general": None, "baselines": False, "shots": 0, "gate": {"margin": None}},
    }  # fmt: skip
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    pipeline = open_run(folder / "recipe.yaml", folder / "run")
    pipeline.run.path.mkdir()
    pipeline.record()
    pipeline.evaluate()
    return pipeline


def test_what_is_shown_often_is_remembered(tally, tmp_path, tiny_folder, many):
    counted = tally(
        "X6",
        "numbers shown 16 times reach 9 of 10 bits and warn, more repeats are never less exposed, and numbers never shown stay at chance",
    )
    controls = []
    for seed in range(many(3, 1)):
        pipeline = trained(tmp_path / str(seed), tiny_folder, seed, repeat=REPEAT)
        metrics = pipeline.evaluate().metrics
        found = metrics["canaries"]["repeats"]
        bits = {count: found[str(count)]["value"] for count in (0, *REPEAT)}
        controls.append(bits[0])
        warnings = metrics["canaries"]["warnings"]
        warned = [warning for warning in warnings if warning.startswith("rows shown 16 times")]
        reason = f"{bits}; {warnings}"
        learnt = bits[16] >= 9 and found["16"]["remembered"]
        counted.verdict(f"seed {seed}: 16 times", learnt, bool(warned), reason)
        more = bits[1] <= bits[4] + 0.5 and bits[4] <= bits[16] + 0.5
        counted.verdict(f"seed {seed}: more is more", more, reason=reason)
        counted.verdict(f"seed {seed}: controls", abs(bits[0] - CHANCE) < 4 * CHANCE / 255**0.5, reason=reason)
        counted.verdict(f"seed {seed}: the warning", len(warned) == 1, reason=reason)
        examples = [
            example
            for split in ("train", "validation", "test")
            for example in load_examples(pipeline.prepare().path, split)
        ]
        counted.verdict(
            f"seed {seed}: in no other figure",
            len(examples) == 40 and not any("random number" in text for one in examples for text in one.strings()),
        )
    page = write(pipeline.run).read_text()
    assert "What is remembered word by word" in page
    assert "never (controls)" in page
    assert "rows shown 16 times" in page


def test_exposure_is_that_of_the_definition():
    """The likeliest of R has log2 R bits, the least likely none, one in the middle one bit; chance is 1 / ln 2."""
    pool = np.arange(1023.0)
    assert exposure(np.array([-1.0, 2000.0, 510.5]), pool) == pytest.approx([10.0, 0.0, 1.0], abs=3e-3)
    uniform = np.random.default_rng(0).uniform(-1, 1023, 20_000)
    assert exposure(uniform, pool).mean() == pytest.approx(CHANCE, abs=0.04)
    assert pytest.approx(1.4427, abs=1e-4) == CHANCE


@pytest.mark.parametrize("count", [2, 4, 255])
def test_the_threshold_is_exceeded_in_one_case_of_a_hundred(count):
    from scipy.stats import gamma

    assert threshold(count) == pytest.approx(gamma.ppf(0.99, count, scale=CHANCE / count), rel=1e-6)


def test_numbers_follow_from_the_seed_and_none_is_drawn_twice():
    spec = Canaries(repeat=(1, 3), each=2)
    shown, (controls, candidates) = spec.groups(7, False), spec.others(7, False)
    origins = [one.origin for group in (*shown, controls, candidates) for one in group]
    assert len(set(origins)) == len(origins) == 4 + 255 + 1023
    assert [
        len(spec.inserted(7, False)),
        spec.inserted(7, False) == spec.inserted(7, False),
        spec.inserted(8, False) == spec.inserted(7, False),
    ] == [8, True, False]
    assert spec.inserted(7, True)[0].text is not None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": {"kind": "dpo"}}, r"prepare\.canaries are answers to learn, and objective dpo of {name}"),
        ({"balance": {"power": 0}}, r"a class of their own; leave them out, or {name}\.balance"),
    ],
)
def test_canaries_are_refused_where_none_would_be_learnt(tmp_path, settings, message):
    again = {"method": {"kind": "magnitude"}, "recovery": settings}
    for name, tree in (("finetune", {"finetune": settings}), ("prune.recovery", {"prune": again})):
        given = {"prepare": {"source": "a", "classes": "answer", "canaries": {}}, **tree}
        (tmp_path / "a.yaml").write_text(json.dumps(given))
        with pytest.raises(ConfigError, match=message.format(name=name)):
            open_run(tmp_path / "a.yaml")
