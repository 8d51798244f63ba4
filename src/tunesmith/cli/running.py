"""Runs stages and says what they came to."""

import json
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from tunesmith.base import Artifact, Run
from tunesmith.stages.pipeline import ORDER, Pipeline, open_run, record

from .progress import following

console = Console(stderr=True, highlight=False)


def run_all(given: Path, folder: Path | None, assignments: tuple[str, ...]) -> int:
    """Every stage in order, then the report; the run's folder is the last line of standard output."""
    pipeline = open_run(given, folder, assignments)
    with pipeline.run.lock():
        record(pipeline)
        evaluated = _stages(pipeline, ORDER[:-1])
        promoted = bool(evaluated.metrics["promote"]) or pipeline.recipe.deploy.ungated
        if promoted:
            _stages(pipeline, ORDER[-1:])
        _conclude(pipeline, evaluated)
    print(pipeline.run.path)
    return 0 if promoted else 1


def run_stage(name: str, given: Path, folder: Path | None, assignments: tuple[str, ...]) -> int:
    """One stage and what it needs."""
    pipeline = open_run(given, folder, assignments)
    with pipeline.run.lock():
        record(pipeline)
        made = _stages(pipeline, (*pipeline.before(name), name))
    print(made / "rows.jsonl" if name == "sample" else made.path)
    if name == "monitor":
        for alert in made.metrics["alerts"]:
            console.print(f"[bold red]alert[/] {alert}")
        return 1 if made.metrics["alerts"] else 0
    return 1 if name == "evaluate" and not made.metrics["promote"] else 0


def _stages(pipeline: Pipeline, names: tuple[str, ...]) -> Artifact:
    """Compute stages in order, with a line each; the last one's artifact."""
    for name in names:
        with following(pipeline.run.events, name, console):
            made = pipeline.stage(name)
    return made


def compare_variants(
    given: Path, folder: Path | None, assignments: tuple[str, ...], vary: tuple[str, ...], seeds: int, as_json: bool
) -> None:
    """Train every variant with every seed, then the table; the path of `compare.md`, or the whole as JSON, goes to standard output."""
    from tunesmith.stages.compare import cells, compare

    def work(pipeline: Pipeline, variant: str) -> Artifact:
        console.rule(f"{variant}, seed {pipeline.recipe.seed}", align="left")
        return _stages(pipeline, (*ORDER[: ORDER.index("finetune") + 1], "ask"))

    found = compare(given, vary, seeds=seeds, assignments=assignments, folder=folder, work=work)
    trainings = f"{seeds} training{'s' if seeds > 1 else ''} each"
    table = Table(title=f"{found['rows']:,} test rows, {trainings}, 95 % intervals", title_justify="left")
    for heading in ("figure", "variant", "value", f"difference from {found['variants'][0]['name']}"):
        table.add_column(heading, justify="left" if heading in ("figure", "variant") else "right")
    for cell in cells(found):
        table.add_row(*map(escape, cell))
    console.print(table)
    path = open_run(given, folder, assignments).run.path / "compare.md"
    print(json.dumps(found, indent=2, ensure_ascii=False) if as_json else path)


def _conclude(pipeline: Pipeline, evaluated: Artifact) -> None:
    """Print the result, where the report is, and what to do next."""
    from tunesmith.stages.report import write

    table = Table(
        title=f"{evaluated.metrics['grader']} in {evaluated.metrics['unit']}, 95 % intervals", title_justify="left"
    )
    for heading in ("system", "score", "interval", "tuned is better by", "interval"):
        table.add_column(heading, justify="left" if heading == "system" else "right")
    for system, figure in evaluated.metrics["systems"].items():
        difference = evaluated.metrics["differences"].get(f"tuned - {system}")
        better = (
            [f"{difference['value']:+.1f}", f"{difference['low']:+.1f} to {difference['high']:+.1f}"]
            if difference
            else ["", ""]
        )
        table.add_row(system, f"{figure['value']:.1f}", f"{figure['low']:.1f} to {figure['high']:.1f}", *better)
    console.print(table)
    for reason in evaluated.metrics["reasons"]:
        console.print(f"  {reason}")
    report = write(pipeline.run)
    if evaluated.metrics["promote"]:
        console.print(f"Promoted. Next: look at {report}, then `tunesmith serve {pipeline.run.path}`.")
    else:
        console.print(
            f"[bold]Not promoted.[/] Look at {report} for why; more rows, more epochs or another method may help."
        )


def run_showdown(given: Path, folder: Path | None, assignments: tuple[str, ...]) -> None:
    """Every run of a showdown, then the page that compares them; its path is the last line of standard output."""
    from tunesmith.stages.report.showdown import write
    from tunesmith.stages.showdown import open_contest

    contest, name = open_contest(given, folder, assignments), ""
    for work in contest.work():
        if work.name != name:
            name = work.name
            console.rule(name, align="left")
        with following(work.run.events, work.stage, console):
            work.do()
    print(write(contest.run))


def write_report(folder: Path) -> None:
    """Write the report of an existing run."""
    from tunesmith.stages.report import write

    print(write(Run(folder)))
