"""The commands; each imports what it needs when it is called, so that help answers at once."""

from pathlib import Path
from typing import Annotated

import typer

from tunesmith.base import ConfigError
from tunesmith.base.launched import follows, several
from tunesmith.base.run import run_of

app = typer.Typer(
    help="Fine-tune a language model on your task, and know that it got better.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
data = typer.Typer(help="Look at data.")
app.add_typer(data, name="data")

Given = Annotated[Path, typer.Argument(metavar="RECIPE|RUN", help="A recipe (.yaml), or the folder of a run.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run.")]
Folder = Annotated[Path | None, typer.Option("--run", help="Where the run lives; runs/NAME by default.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[path.to.field=value ...]", help="Settings to change.")]

ALONE = ("search", "showdown", "compare", "data-curve", "merge")
"""Commands of one process: each makes several trainings, or none."""


@app.callback()
def before(
    context: typer.Context,
    code: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE.py",
            help="Functions of your own, for graders and rewards {kind: function, name: ...}. Give it as often as you like.",
        ),
    ] = None,
) -> None:
    """Fine-tune a language model on your task, and know that it got better."""
    if several() and context.invoked_subcommand in ALONE:
        raise ConfigError(
            f"{context.invoked_subcommand}: torchrun shares a single training among processes, and this is none; start it alone, or `tunesmith run` with torchrun"
        )
    if code:
        from tunesmith.grading.function import load_code

        for path in code:
            load_code(path)


@app.command()
def run(given: Given, overrides: Overrides = None, folder: Folder = None) -> int:
    """All stages, from data to a model that can be served; what is there already is not computed again."""
    _check_free(given, folder)
    from .running import run_all

    return run_all(given, folder, tuple(overrides or ()))


def _check_free(given: Path, folder: Path | None) -> None:
    """Find out before torch is loaded, which takes seconds, that another process works at the run."""
    if not follows():
        run_of(given, folder).check_free()


def _stage_command(name: str, help_text: str) -> None:
    def command(given: Given, overrides: Overrides = None, folder: Folder = None) -> int:
        _check_free(given, folder)
        from .running import run_stage

        return run_stage(name, given, folder, tuple(overrides or ()))

    app.command(name, help=help_text)(command)


_stage_command("prepare", "Stage 1: read, check, split and tokenise the data; every row is accounted for.")
_stage_command("initialise", "Stage 2: load the model, attach the adapter, check what will be trained.")


@app.command()
def search(
    given: Given,
    overrides: Overrides = None,
    folder: Folder = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that train trials at the same time.")] = 1,
    ray: Annotated[
        bool, typer.Option("--ray", help="Workers run on the Ray cluster that this machine belongs to.")
    ] = False,
) -> int:
    """Stage 3: choose settings, by trials that stop early, of which the best go on to the end; nothing unless the recipe says so."""
    _check_free(given, folder)
    from .running import run_search

    return run_search(given, folder, tuple(overrides or ()), workers, ray)


_stage_command("finetune", "Stage 4: train.")
_stage_command("prune", "Stage 5: take weights or whole parts out, and tune again; nothing unless the recipe says so.")
_stage_command("evaluate", "Stage 6: measure against base, prompts and classical baselines; exits 1 if not promoted.")
_stage_command("deploy", "Stage 7: merge, write the model and its card, prove that it is what was trained.")
_stage_command(
    "monitor", "Stage 8: compare what was asked of the served model with its training data; exits 1 on an alert."
)
_stage_command(
    "sample", "Rows of a model's own answers: the best ones, or pairs of a right and a wrong one; prints their file."
)
_stage_command(
    "prompt", "How far the model gets untuned: ways of prompting it, compared; prints the file of the best prompt."
)


@app.command()
def showdown(
    given: Annotated[Path, typer.Argument(metavar="SHOWDOWN", help="What is compared (.yaml).")],
    overrides: Overrides = None,
    folder: Folder = None,
) -> None:
    """Several ways to train from one start, with equal compute, compared on one page; prints its path."""
    from .running import run_showdown

    run_showdown(given, folder, tuple(overrides or ()))


@app.command()
def compare(
    given: Given,
    overrides: Overrides = None,
    vary: Annotated[
        list[str] | None,
        typer.Option(
            metavar="PATH=VALUE,VALUE",
            help="A variant for each value; 'a.b=1 c.d=2' is one that changes both. Give it as often as you like.",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each, by seeds that follow the recipe's.")] = 1,
    folder: Folder = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Train variants of a recipe and say by how much each is better than the recipe itself; what is there already is not trained again."""
    from .running import compare_variants

    compare_variants(given, folder, tuple(overrides or ()), tuple(vary or ()), seeds, as_json)


@app.command()
def data_curve(
    given: Given,
    overrides: Overrides = None,
    sizes: Annotated[
        str | None,
        typer.Option(metavar="0,25,50,...", help="Rows to learn from; doubling from 25 to all there are by default."),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Trainings of each size.")] = 3,
    once_from: Annotated[int | None, typer.Option(min=1, help="Sizes from this one on are trained once.")] = None,
    least_steps: Annotated[int, typer.Option(min=1, help="Fewest steps of a training.")] = 50,
    most_steps: Annotated[int, typer.Option(min=1, help="Most steps of a training.")] = 1000,
    target: Annotated[float | None, typer.Option(help="A score: how many rows does it take? 0.9 is 90 %.")] = None,
    least_gain: Annotated[
        float, typer.Option(help="What a doubling must bring to be worth it, in the headline's unit.")
    ] = 1.0,
    price: Annotated[float | None, typer.Option(min=0, help="What labelling a row costs.")] = None,
    folder: Annotated[
        Path | None, typer.Option("--run", help="Where the curve lives; runs/NAME-curve by default.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """How much data is enough: train on nested parts of the rows, and fit a curve; what is there already is not trained again."""
    from .running import draw_curve

    asked = {"sizes": sizes, "seeds": seeds, "once_from": once_from, "least_steps": least_steps, "most_steps": most_steps,
             "target": target, "least_gain": least_gain, "price": price}  # fmt: skip
    draw_curve(given, folder, tuple(overrides or ()), asked, as_json)


@app.command()
def merge(
    given: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN RUN ... [path.to.field=value ...]", help="Folders of finished runs; settings to change."
        ),
    ],
    folder: Annotated[Path, typer.Option("--run", "--out", help="Where the merged run lives.")],
    method: Annotated[str | None, typer.Option(help="How; the same as merge.method.kind=...")] = None,
    weights: Annotated[
        str | None, typer.Option(help="How much of each run, as 0.6,0.4; the same as merge.weights=[...]")
    ] = None,
) -> int:
    """Put what several runs learnt of one base together, and measure it on the task of each; exits 1 if not promoted."""
    from .running import merge_runs

    return merge_runs(given, folder, method, weights)


@app.command()
def show(given: RunFolder, as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False) -> None:
    """Every stage's state, artifact, hash and figures."""
    from .showing import show_run

    show_run(given, as_json)


@app.command()
def plan(given: Given, overrides: Overrides = None) -> int:
    """What a recipe will need of this machine, before anything is spent."""
    from .showing import show_plan

    return show_plan(given, tuple(overrides or ()))


@app.command()
def explain(
    topic: Annotated[str, typer.Argument(help="For example objective.sft, adapter, or finetune.schedule.")] = "",
) -> None:
    """What a method or a setting is, with its defaults."""
    from .showing import explain_topic

    explain_topic(topic)


@app.command()
def schema() -> None:
    """The JSON schema of a recipe."""
    from .showing import print_schema

    print_schema()


@app.command()
def doctor() -> int:
    """What this machine has, what is missing, and the command that mends it."""
    from .doctor import examine

    return examine()


@app.command()
def report(given: RunFolder) -> None:
    """Write the run's report.html again."""
    from .running import write_report

    write_report(given)


@app.command()
def serve(
    given: Annotated[
        list[Path], typer.Argument(metavar="RUN [RUN ...]", help="Folders of runs; several share one base.")
    ],
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on.")] = None,
) -> None:
    """An OpenAI-compatible server of the base and the tuned model, or of one base with the adapters of several runs."""
    from .serving import serve_runs

    serve_runs(given, host, port)


@app.command()
def track(
    given: RunFolder,
    to: Annotated[str, typer.Option(help="tensorboard or mlflow.")] = "tensorboard",
    target: Annotated[str, typer.Option(help="Folder (tensorboard) or tracking URI (mlflow).")] = "",
) -> None:
    """Hand a run's events to a tracker."""
    from .tracking import hand_over

    hand_over(given, to, target)


@data.command()
def preview(
    given: Given,
    overrides: Overrides = None,
    rows: Annotated[int, typer.Option(min=1, help="How many rows.")] = 3,
    folder: Folder = None,
) -> None:
    """Show rows as tokens, with those that are learnt marked."""
    from .showing import preview_rows

    preview_rows(given, folder, tuple(overrides or ()), rows)
