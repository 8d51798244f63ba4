"""Serves finished runs by name: base and tuned model of one side by side, or the adapters of several on one base."""

import contextlib
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.text import Text

from tunesmith.base import Artifact, ConfigError, Interrupted, Run
from tunesmith.base.extras import lacking
from tunesmith.base.spec import read_yaml, validate
from tunesmith.models.load import Loaded
from tunesmith.serving.settings import Serve
from tunesmith.stages.order import RESOLVED
from tunesmith.stages.pipeline import LOG
from tunesmith.stages.served import adapters_of, check_cache, models_of

console = Console(stderr=True, highlight=False, markup=False, emoji=False)

SEVERAL = "requests-of-several.sqlite"
"""The request log where several runs are served: monitor, which looks at one run's requests, does not read it."""


def serve_runs(folders: list[Path], host: str | None, port: int | None) -> None:
    """Serve the runs' models until told to stop; settings and the log are the first run's.

    Raises:
        ArtifactError: a run has not been deployed.
        ConfigError: several runs are not adapters of one base, or a setting is given.
        MachineError: the port is taken, memory is too small, or the server's packages are not installed.
    """
    _refuse_settings(folders)
    try:
        from tunesmith.serving.api import create_app
        from tunesmith.serving.engine import Engine
        from tunesmith.serving.log import RequestLog
        from tunesmith.serving.server import find_token, open_port, run_server, url_host
    except ImportError as error:
        raise lacking(error, "serve", "serve") from None
    log = folders[0] / (LOG if len(folders) == 1 else SEVERAL)
    kept = (
        read_yaml(folders[0] / RESOLVED).get("serve") or {}
    )  # of a recipe that might be refused by now, as what was learnt is not
    changes = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    settings = validate(Serve, {**kept, **changes}, "serve")
    deployed = [Run(one).last("deploy") for one in folders]
    adapters = adapters_of(folders, deployed)
    for folder, artifact in zip(folders, deployed, strict=True):
        warn_of_age(folder, artifact)
    token, made = find_token(settings)
    with contextlib.closing(open_port(settings)) as socket:
        models = _load(deployed[0], adapters, settings)
        address = f"http://{url_host(settings.host)}:{socket.getsockname()[1]}/v1"
        console.print(
            Text.assemble(f"serving {', '.join(models)} at ", (address, "bold"), f"; requests are logged to {log}")
        )
        if made:
            console.print(f"token: {token}  (set TUNESMITH_TOKEN or serve.token_file to choose your own)")
        requests = RequestLog(log, settings.log, " ".join(artifact.path.name for artifact in deployed))
        application = create_app(Engine(models, settings), settings, requests, token)
        try:
            run_server(application, socket)
        except Interrupted:  # how a server is stopped
            console.print("stopped")


def _load(deployed: Artifact, adapters: Mapping[str, Path], settings: Serve) -> dict[str, Loaded]:
    """Models by name, and a warning where memory may run short of what requests will fill."""
    console.print("loading the models")
    models = models_of(deployed, adapters)
    if short := check_cache(models, settings.cache):
        console.print(Text.assemble(("warning", "yellow"), f" {short}, before requests have filled them"))
    return models


def _refuse_settings(folders: list[Path]) -> None:
    if setting := next((one for one in folders if "=" in str(one) and not one.exists()), None):
        run = next((one for one in folders if one.is_dir()), "runs/NAME")
        raise ConfigError(
            f"{setting}: is no folder of a run; if it is a setting, `tunesmith deploy {run} {setting}` keeps it for the next `tunesmith serve {run}`"
        )


def warn_of_age(folder: Path, deployed: Artifact) -> None:
    """Say so if what a run deployed is not what it trained and measured last: the gate may have refused that, or its deployment did not end."""
    states = Run(folder).states
    parents = [one for one in deployed.manifest["parents"] if one["stage"] in states]  # a merged run has others' too
    newer = states.get("deploy", {"state": "done"})
    if newer["state"] != "done":
        why = f"to deploy what is newer is {newer['state']}" + (f" ({newer['error']})" if "error" in newer else "")
    elif any(one["folder"] != states[one["stage"]]["artifact"] for one in parents):
        why = "was trained or measured again since, and not deployed"
    else:
        return
    told = f" {folder}: {why}; what is served is what was deployed before ({deployed.path.name})"
    console.print(Text.assemble(("warning", "yellow"), told))
