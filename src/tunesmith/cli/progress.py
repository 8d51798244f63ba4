"""Progress on the terminal: one more reader of the run's events."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from tunesmith.base import Events

PAUSE = 0.3
"""Seconds between looks at the events."""
CLASSES = 8
"""Most classes that are told of, the largest first."""


class Follower:
    """Draws what a stage says while it works; without a terminal, a line now and then."""

    def __init__(self, events: Events, stage: str, console: Console) -> None:
        self.stage, self.console = stage, console
        self.file = events.path
        self.offset = self.file.stat().st_size if self.file.exists() else 0
        self.events = events
        self.stopping = threading.Event()
        self.shown = -1
        self.progress = Progress(
            TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed}/{task.total}  {task.fields[text]}"),
            TimeRemainingColumn(), console=console, transient=True,
        )  # fmt: skip
        self.task: Any = None

    def work(self) -> None:
        """Read and draw until told to stop."""
        while not self.stopping.wait(PAUSE):
            self.look()

    def look(self) -> None:
        """Draw what is new."""
        for event in self.events.since(self.offset):
            self.offset = event.pop("offset")
            if event["event"] == "step":
                self._step(event)
            elif event["event"] == "validation":
                best = ", the best so far" if event["best"] else ""
                self._say(f"step {event['step']}: {event['metric']} {event['value']:.4g} on validation rows{best}")
            elif event["event"] == "classes":
                self._classes(event["classes"])
            elif event["event"] == "answering":
                self._say(f"answering the {event['rows']} rows: {event['system']}")
            elif event["event"] == "sampled":
                self._say(f"{event['prompts']}/{event['of']} prompts answered, reward {event['reward']:.3f}")
            elif event["event"] == "trial":
                self._trial(event)
            elif event["event"] == "resumed":
                self._say(f"going on from step {event['step']}")
            elif event["event"] in ("damaged", "worker_lost", "note"):
                self._say(event["reason"])

    def _step(self, event: dict[str, Any]) -> None:
        speed = event["tokens"] / event["seconds"] if event["seconds"] else 0.0
        telling = "reward" if "reward" in event else "loss"
        text = f"{telling} {event[telling]:.3f}  {speed:,.0f} tokens/s"
        if self.console.is_terminal:
            if self.task is None:
                self.progress.start()
                self.task = self.progress.add_task("  training", total=event["steps"], text=text)
            self.progress.update(self.task, completed=event["step"], text=text)
        elif event["step"] * 10 // event["steps"] > self.shown:
            self.shown = event["step"] * 10 // event["steps"]
            self._say(f"step {event['step']}/{event['steps']}  {text}")

    def _trial(self, event: dict[str, Any]) -> None:
        """What a trial of a search came to, and what it tried."""
        tried = ", ".join(f"{path.rpartition('.')[2]} {_short(value)}" for path, value in event["settings"].items())
        said = (
            f"{event['metric']} {event['value']:.4g}"
            if event["value"] is not None
            else f"{event['state']}, {event['reason']}"
        )
        self._say(f"trial {event['number']} of {event['of']} at {100 * event['share']:g} %: {said} ({tried})")

    def _classes(self, classes: dict[str, Any]) -> None:
        """The first few, with how many rows an epoch holds of each."""
        told = ", ".join(f"{name} {each['epoch']} of {each['rows']}" for name, each in [*classes.items()][:CLASSES])
        more = f", and {len(classes) - CLASSES} more classes" if len(classes) > CLASSES else ""
        self._say(f"rows in an epoch: {told}{more}")

    def _say(self, text: str) -> None:
        self.console.print(f"  {text}")


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


@contextmanager
def following(events: Events, stage: str, console: Console) -> Iterator[None]:
    """Within this block what happens in a stage is drawn; at its end a line says how long it took."""
    follower = Follower(events, stage, console)
    thread = threading.Thread(target=follower.work, daemon=True)
    console.print(stage, style="bold")
    thread.start()
    try:
        yield
    finally:
        follower.stopping.set()
        thread.join()
        follower.look()
        follower.progress.stop()
    last = next((event for event in reversed(list(events.read())) if event.get("stage") == stage), None)
    if last is not None:
        console.print("  there already" if last["event"] == "cached" else f"  done in {last.get('seconds', 0):.1f} s")
