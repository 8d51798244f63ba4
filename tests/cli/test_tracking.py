"""What TensorBoard and MLflow read of a run is what its events say."""

import sys

import pytest
from synthetic_run import run_until

from tunesmith.base import Run
from tunesmith.cli import tracking


@pytest.fixture
def run(tmp_path) -> Run:
    return run_until(tmp_path / "run", "evaluate")


def losses(run):
    return {event["step"]: event["loss"] for event in run.events.read("step")}


def test_tensorboard_shows_every_step(run, tunesmith, tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    code, out, _ = tunesmith("track", run.path, "--target", tmp_path / "board")
    assert code == 0
    assert str(tmp_path / "board") in out
    board = EventAccumulator(str(tmp_path / "board"))
    board.Reload()
    found = {point.step: point.value for point in board.Scalars("train/loss")}
    assert found == pytest.approx(losses(run))
    assert len(found) > 1


def test_mlflow_keeps_curves_and_figures(run, tunesmith, tmp_path):
    import mlflow

    uri = f"sqlite:///{tmp_path / 'tracked.db'}"
    code, out, _ = tunesmith("track", run.path, "--to", "mlflow", "--target", uri)
    assert code == 0
    client = mlflow.MlflowClient(tracking_uri=uri)
    tracked = out.split()[-3]
    found = {point.step: point.value for point in client.get_metric_history(tracked, "train/loss")}
    assert found == pytest.approx(losses(run))
    figures = client.get_run(tracked).data.metrics
    assert any(name.startswith("evaluate.") for name in figures)
    assert "evaluate.promote" not in figures, "true and false are no numbers"


def test_mlflow_is_told_many_numbers_at_once(run, tunesmith, tmp_path, monkeypatch):
    import mlflow

    sent, send = [], mlflow.MlflowClient.log_batch
    monkeypatch.setattr(tracking, "AT_ONCE", 3)
    monkeypatch.setattr(
        mlflow.MlflowClient, "log_batch", lambda self, name, some: (sent.append(len(some)), send(self, name, some))
    )
    code, _, error = tunesmith("track", run.path, "--to", "mlflow", "--target", f"sqlite:///{tmp_path / 'tracked.db'}")
    assert code == 0, error
    assert sent[:-1] == [3] * (len(sent) - 1)
    assert sum(sent) == len(list(tracking.scalars(run))) + len(tracking.figures(run))


def test_an_unknown_tracker_is_refused(run, tunesmith):
    code, _, error = tunesmith("track", run.path, "--to", "abacus")
    assert code == 2
    assert "tensorboard, mlflow" in error


def test_without_its_package_a_tracker_names_what_to_install(run, tunesmith, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    code, _, error = tunesmith("track", run.path, "--to", "mlflow")
    assert code == 2
    assert "track --to mlflow: the package 'mlflow' is not installed; run: pip install" in " ".join(error.split())
