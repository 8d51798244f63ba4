"""`tunesmith serve` and `monitor` where the newest deployment came to nothing, and how settings of a finished run are changed."""

from pathlib import Path

import pytest

from tunesmith.base import Run
from tunesmith.base.spec import dump_yaml, read_yaml
from tunesmith.serving import server
from tunesmith.stages.pipeline import open_run


@pytest.fixture
def serve(tunesmith, monkeypatch):
    """Serves a run's models, without waiting for requests; exit code and what was said."""
    monkeypatch.setattr(server, "run_server", lambda application, port: None)

    def call(*words):
        code, _, error = tunesmith("serve", *words, "--port", "0")
        return code, " ".join(error.split())

    return call


def test_a_refused_deployment_leaves_the_earlier_model_in_service(tunesmith, task, serve):
    code, _, error = tunesmith("run", task(), "--run", "r")
    assert (code, "Not promoted, but deployed, since deploy.ungated is set" in " ".join(error.split())) == (0, True)
    assert "Next: `tunesmith serve r`." in " ".join(error.split())
    run = Run(Path("r"))
    name = run.artifact("deploy").path.name
    assert tunesmith("deploy", "r", "finetune.epochs=0.5", "deploy.ungated=false")[0] == 2
    assert run.states["deploy"]["state"] == "failed"
    _, shown, _ = tunesmith("show", "r")
    assert "failed" in shown
    assert f"finished before: {name}" in shown
    code, told = serve("r")
    assert code == 0, told
    kept = "to deploy what is newer is failed (deploy: the gate did not promote this model"
    assert kept in told
    assert f"what is served is what was deployed before ({name})" in told
    made = len(list(run.events.read("done")))
    code, _, error = tunesmith("monitor", "r")
    assert code == 0, error
    assert kept in " ".join(error.split())
    monitored = run.artifact("monitor").manifest
    assert monitored["context"]["artifact"] == name
    parents = [one for one in run.last("deploy").manifest["parents"] if one["stage"] in ("prepare", "evaluate")]
    assert monitored["parents"] == parents  # not the evaluation of what was refused
    assert len(list(run.events.read("done"))) == made + 1

    code, told = serve("r", "serve.queue=10")
    assert code == 2
    assert "tunesmith deploy r serve.queue=10" in told
    assert tunesmith("deploy", "r", "finetune.epochs=1.0", "deploy.ungated=true", "serve.queue=10")[0] == 0
    assert len(list(run.events.read("done"))) == made + 1, "made anew what was there"
    assert open_run(run.path).recipe.serve.queue == 10
    code, told = serve("r")
    assert (code, "warning" in told) == (0, False), told
    resolved = run.path / "resolved.yaml"
    resolved.write_text(dump_yaml(read_yaml(resolved) | {"precision": "what was called so once"}))
    code, told = serve("r")
    assert code == 0, f"what was learnt can be served, though its recipe is refused by now: {told}"
