"""Hands a run's events to a tracker: TensorBoard and MLflow are readers of the one record."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunesmith.base import ConfigError, MachineError, Run
from tunesmith.base.extras import lacking
from tunesmith.base.secrets import redacted

AT_ONCE = 1000
"""Most metrics that MLflow takes in one request (its REST API, log-batch)."""


def hand_over(folder: Path, to: str, target: str) -> None:
    """Write a run's curves and figures to TensorBoard or MLflow.

    Args:
        folder: the run.
        to: `tensorboard` or `mlflow`.
        target: TensorBoard's folder (RUN/tensorboard by default), or MLflow's tracking URI (sqlite in the run folder).

    Raises:
        ConfigError: no such tracker, or no such run.
        MachineError: the tracker is not installed.
    """
    trackers = {"tensorboard": _tensorboard, "mlflow": _mlflow}
    if to not in trackers:
        raise ConfigError(f"--to {to}: there are {', '.join(trackers)}")
    run = Run(folder)
    if not run.events.path.exists():
        raise ConfigError(f"{folder}: is not the folder of a run; it has no events.jsonl")
    try:
        print(redacted(trackers[to](run, target)))
    except ImportError as error:
        raise lacking(error, "track", f"track --to {to}") from None


def scalars(run: Run) -> Iterator[tuple[str, int, float, float]]:
    """(name, step, value, time) of every number in the events of the run's training."""
    state = run.states.get("finetune", {})
    events = run.events.tagged(artifact=state.get("artifact"))
    steps = {event["step"]: event for event in events.read("step")}
    for step, event in sorted(steps.items()):
        for name, value in event.items():
            if isinstance(value, float) and name not in ("time", "seconds"):
                yield f"train/{name}", step, value, event["time"]
        yield "train/tokens_per_second", step, event["tokens"] / max(event["seconds"], 1e-9), event["time"]
    for event in {event["step"]: event for event in events.read("validation")}.values():
        yield f"validation/{event['metric']}", event["step"], event["value"], event["time"]


def figures(run: Run) -> dict[str, float]:
    """Every number among the metrics of the finished stages, by dotted name."""
    found: dict[str, float] = {}

    def walk(name: str, value: Any) -> None:
        if isinstance(value, dict):
            for part, below in value.items():
                walk(f"{name}.{part}", below)
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[name.replace(" - ", " minus ")] = float(value)

    for stage, state in run.states.items():
        if state["state"] == "done":
            walk(stage, run.artifact(stage).metrics)
    return found


def _tensorboard(run: Run, target: str) -> str:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    folder = target or str(run.path / "tensorboard")
    writer = EventFileWriter(folder)
    for name, step, value, at in scalars(run):
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value)])
        writer.add_event(Event(wall_time=at, step=step, summary=summary))
    writer.close()
    return f"tensorboard --logdir {folder}"


def _mlflow(run: Run, target: str) -> str:
    import mlflow

    uri = target or f"sqlite:///{run.path.resolve() / 'mlflow.db'}"
    try:
        return _logged(mlflow.MlflowClient(tracking_uri=uri), run, uri)
    except mlflow.exceptions.MlflowException as error:
        raise MachineError(f"mlflow at {uri}: {str(error).splitlines()[0]}; is it running there?") from None


def _logged(client: Any, run: Run, uri: str) -> str:
    from mlflow.entities import Metric

    experiment = client.get_experiment_by_name("tunesmith")
    number = experiment.experiment_id if experiment else client.create_experiment("tunesmith")
    tracked = client.create_run(number, run_name=run.path.name).info.run_id
    curves = [Metric(name, value, int(1000 * at), step) for name, step, value, at in scalars(run)]
    now = int(1000 * time.time())
    metrics = [*curves, *(Metric(name.replace("%", "percent"), value, now, 0) for name, value in figures(run).items())]
    for start in range(0, len(metrics), AT_ONCE):
        client.log_batch(tracked, metrics[start : start + AT_ONCE])
    client.set_terminated(tracked)
    return f"mlflow run {tracked} at {uri}"
