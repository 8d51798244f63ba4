"""Runs stages and says what they came to."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tunesmith.base import Artifact, ConfigError, Run
from tunesmith.base.files import read_json
from tunesmith.base.spec import validate
from tunesmith.stages.headline import cells, prompt_cells, warnings
from tunesmith.stages.merged import Merger, merged_from
from tunesmith.stages.pipeline import Pipeline, open_any, open_run
from tunesmith.stages.shared import together

from .progress import following
from .serving import warn_of_age

console = Console(stderr=True, highlight=False, markup=False, emoji=False)
"""Prints text as it is: classes, prompts and folders may look like markup."""

WRITTEN = {"sample": "rows.jsonl", "prompt": "prompt.json"}
"""The file that a stage is run for, where it is one."""


def run_all(given: Path, folder: Path | None, assignments: tuple[str, ...]) -> int:
    """Every stage in order, then the report; the run's folder is the last line of standard output."""
    with together() as leads:
        return _run(open_any(given, folder, assignments)) if leads else 0


def merge_runs(given: list[str], folder: Path, method: str | None, weights: str | None) -> int:
    """Every stage of a merged run; what holds a = and is nothing that is there is a setting, all else the folder of a run."""
    settings = [word for word in given if "=" in word and not Path(word).exists()]
    runs = [Path(word) for word in given if word not in settings]
    settings += [f"merge.method.kind={method}"] * (method is not None) + [f"merge.weights=[{weights}]"] * (
        weights is not None
    )
    return _run(Merger(merged_from(runs, tuple(settings)), Run(folder)))


def _run(pipeline: Pipeline | Merger) -> int:
    with pipeline.run.lock(), pipeline.recorded():
        evaluated = _stages(pipeline, pipeline.before(pipeline.ORDER[-1]))
        promoted = bool(evaluated.metrics["promote"]) or pipeline.recipe.deploy.ungated
        if promoted:
            _stages(pipeline, pipeline.ORDER[-1:])
        _conclude(pipeline, evaluated)
    print(pipeline.run.path)
    return 0 if promoted else 1


def run_stage(name: str, given: Path, folder: Path | None, assignments: tuple[str, ...]) -> int:
    """One stage and what it needs."""
    with together() as leads:
        if not leads:
            return 0
        pipeline = open_any(given, folder, assignments)
        made = _stage(name, pipeline)
    if name == "prompt":
        _print_prompts(made)
    if name == "monitor":
        warn_of_age(pipeline.run.path, pipeline.deployed)
    print(made / WRITTEN[name] if name in WRITTEN else made.path)
    if name == "monitor":
        for alert in made.metrics["alerts"]:
            console.print(Text.assemble(("alert", "bold red"), f" {alert}"))
        return 1 if made.metrics["alerts"] else 0
    return 1 if name == "evaluate" and not made.metrics["promote"] else 0


def _stage(name: str, pipeline: Pipeline | Merger) -> Artifact:
    """One stage and what it needs, the run's folder held against other processes."""
    with pipeline.run.lock(), pipeline.recorded():
        return _stages(pipeline, (*pipeline.before(name), name))


def run_search(given: Path, folder: Path | None, assignments: tuple[str, ...], workers: int, ray: bool) -> int:
    """Search by several processes, here or on a cluster, then the table of trials."""
    from tunesmith.stages.search.cluster import work_on_cluster
    from tunesmith.stages.search.stage import RESULTS
    from tunesmith.stages.search.table import heading, lines, summary
    from tunesmith.stages.search.worker import work_together

    pipeline = open_run(given, folder, assignments)
    if ray or workers > 1:
        pipeline.work = partial(work_on_cluster if ray else work_together, workers=workers)
    made = _stage("search", pipeline)
    if (made / RESULTS).exists():
        found = read_json(made / RESULTS)
        table = Table(title=heading(found), title_justify="left")
        headings, *rows = lines(found, together=True)
        for name in headings:
            table.add_column(name, justify="left" if name == "settings" else "right", overflow="fold")
        for row in rows:
            table.add_row(*row, style="bold" if row[0] == str(found["winner"]) else None)
        console.print(table)
        for sentence in summary(found):
            console.print(f"  {sentence}")
    print(made.path)
    return 0


def _stages(pipeline: Pipeline | Merger, names: tuple[str, ...]) -> Artifact:
    """Compute stages in order, with a line each; the last one's artifact."""
    for name in names:
        with following(pipeline.run.events, name, console):
            made = pipeline.stage(name)
    return made


def _print_prompts(made: Artifact) -> None:
    """Every way of prompting with its scores, then the best prompt itself."""
    found = made.metrics
    title = (
        f"{found['grader']} in {found['unit']}; chosen by {found['rows']['development']} training rows, 95 % intervals"
    )
    table = Table(title=title, title_justify="left")
    for heading in ("prompt", "development", f"{found['rows']['test']} test rows", "tokens a request"):
        table.add_column(heading, justify="left" if heading == "prompt" else "right")
    for row in prompt_cells(found):
        table.add_row(*row)
    console.print(table)
    for kind, about in found["retrievers"].items():
        console.print(f"  {kind}: {about}")
    for way in (each for each in found["ways"] if each["shortened"]):
        console.print(f"  {way['way']}: {way['shortened']} requests had to do with fewer examples, all would not fit into the model's context")  # fmt: skip
    best = read_json(made / "prompt.json")
    console.print(f"Best: {best['way']} ({best['about']}).")
    if best["system"]:
        console.print(f"  {best['system']}")


def compare_variants(
    given: Path, folder: Path | None, assignments: tuple[str, ...], vary: tuple[str, ...], seeds: int, as_json: bool
) -> None:
    """Train every variant with every seed, then the table; the path of `compare.md`, or the whole as JSON, goes to standard output."""
    from tunesmith.stages.compare import cells, compare

    def work(pipeline: Pipeline, variant: str) -> Artifact:
        console.rule(f"{variant}, seed {pipeline.recipe.seed}", align="left")
        return _stages(pipeline, (*pipeline.before("ask"), "ask"))

    found = compare(given, vary, seeds=seeds, assignments=assignments, folder=folder, work=work)
    trainings = f"{seeds} training{'s' if seeds > 1 else ''} each"
    table = Table(title=f"{found['rows']:,} test rows, {trainings}, 95 % intervals", title_justify="left")
    for heading in ("figure", "variant", "value", f"difference from {found['variants'][0]['name']}"):
        table.add_column(heading, justify="left" if heading in ("figure", "variant") else "right")
    for cell in cells(found):
        table.add_row(*cell)
    console.print(table)
    path = open_run(given, folder, assignments).run.path / "compare.md"
    print(json.dumps(found, indent=2, ensure_ascii=False) if as_json else path)


def draw_curve(
    given: Path, folder: Path | None, assignments: tuple[str, ...], asked: dict[str, Any], as_json: bool
) -> None:
    """Train every size with every seed, then the table; the path of `curve.html`, or the whole as JSON, goes to standard output."""
    from tunesmith.stages.curve import Curve, data_curve
    from tunesmith.stages.curve.measure import folder_of
    from tunesmith.stages.curve.text import headline, rows, sentences

    path = folder_of(given, folder)

    def work(pipeline: Pipeline, name: str) -> Artifact:
        console.rule(f"{name}, seed {pipeline.recipe.seed}", align="left")
        return _stages(pipeline, (*pipeline.before("ask"), "ask"))

    def beside(stage: str, make: Callable[[], Artifact]) -> Artifact:
        with following(Run(path).events, stage, console):
            return make()

    sizes = [part.strip() for part in asked["sizes"].split(",")] if asked["sizes"] else []
    spec = validate(Curve, {**asked, "sizes": sizes}, "data-curve")
    found = data_curve(given, spec, assignments=assignments, folder=folder, work=work, beside=beside)
    head = headline(found)
    title = f"{head['grader']}, {head['unit']}; {found['rows']:,} test rows, 95 % intervals over rows and trainings"
    table = Table(title=title, title_justify="left")
    heads, lines = rows(found)
    for heading in heads:
        table.add_column(heading, justify="left" if heading == "flag" else "right")
    for point in lines:
        table.add_row(*point)
    console.print(table)
    for line in sentences(found):
        console.print(f"  {line}")
    print(json.dumps(found, indent=2, ensure_ascii=False) if as_json else path / "curve.html")


def _conclude(pipeline: Pipeline | Merger, evaluated: Artifact) -> None:
    """Print the result, where to read more, and what to do next."""
    metrics, merged = evaluated.metrics, isinstance(pipeline, Merger)
    subject = "merged" if merged else "tuned"
    for name, task in metrics.get("tasks", {"": metrics}).items():
        title = f"{name}: {task['grader']}" if merged else task["grader"]
        table = Table(title=f"{title} in {task['unit']}, 95 % intervals", title_justify="left")
        for heading in ("system", "score", "interval", f"{subject} is better by", "interval"):
            table.add_column(heading, justify="left" if heading == "system" else "right")
        for row in cells(task, subject):
            table.add_row(*row)
        console.print(table)
    for reason in metrics["reasons"]:
        console.print(f"  {reason}")
    for warning in warnings(metrics):
        console.print(Text.assemble("  ", ("warning", "yellow"), f" {warning}"))
    details = _report(pipeline.run)
    serve = f"`tunesmith serve {pipeline.run.path}`"
    if metrics["promote"]:
        console.print(f"Promoted. Next: look at {details}, then {serve}.")
    elif pipeline.recipe.deploy.ungated:
        told = f", but deployed, since deploy.ungated is set; {details} tells what the gate said. Next: {serve}."
        console.print(Text.assemble(("Not promoted", "bold"), told))
    else:
        hint = (
            "Other weights or another method may help."
            if merged
            else "If too little was gained, look at the answers, then try other rates (`tunesmith search`), more rows or more epochs; if other text is read worse, fewer steps, a lower rate or a wider evaluate.gate.margin."
        )
        told = f", and so not deployed. {details} tells why. {hint} To deploy it all the same: the same command with deploy.ungated=true."
        console.print(Text.assemble(("Not promoted", "bold"), told))


def _report(run: Run) -> Path:
    from tunesmith.stages.report import merged, showdown, write

    if "compare" in run.states:
        return showdown.write(run)
    return merged.write(run) if "merge" in run.states else write(run)


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
    """Write the report of an existing run.

    Raises:
        ConfigError: there is none.
    """
    run = Run(folder)
    if not folder.is_dir() or not run.states:
        raise ConfigError(f"{folder}: is not the folder of a run; give one, for example runs/quickstart")
    print(_report(run))
