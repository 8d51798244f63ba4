"""Serves a finished run: base and tuned model side by side, by name."""

import contextlib
from pathlib import Path

from rich.console import Console

from tunesmith.base import Interrupted, MachineError, Run
from tunesmith.base.spec import validate
from tunesmith.models.load import load, served
from tunesmith.serving.settings import Serve
from tunesmith.stages.pipeline import LOG, open_any

console = Console(stderr=True, highlight=False)


def serve_run(folder: Path, host: str | None, port: int | None) -> None:
    """Serve the run's models until told to stop.

    Raises:
        ArtifactError: the run has not been deployed.
        MachineError: the port is taken, or the server's packages are not installed.
    """
    try:
        from tunesmith.serving.api import create_app
        from tunesmith.serving.engine import Engine
        from tunesmith.serving.log import RequestLog
        from tunesmith.serving.server import find_token, open_port, run_server
    except ImportError as error:
        raise MachineError(f"serving needs {error.name}: pip install 'tunesmith[serve]'") from None
    recipe = open_any(folder).recipe
    changes = {name: value for name, value in (("host", host), ("port", port)) if value is not None}
    settings = validate(Serve, {**recipe.serve.model_dump(), **changes}, "serve")
    deployed = Run(folder).artifact("deploy")
    token, made = find_token(settings)
    with contextlib.closing(open_port(settings)) as socket:
        console.print("loading the models")
        about = deployed.manifest["context"]
        models = {
            "tuned": load(str(deployed / "model"), served(about["precision"])),
            "base": load(about["model"], served(about["precision"])),
        }
        address = f"http://{settings.host}:{socket.getsockname()[1]}/v1"
        console.print(f"serving {' and '.join(models)} at [bold]{address}[/]; requests are logged to {folder / LOG}")
        if made:
            console.print(f"token: {token}  (set TUNESMITH_TOKEN or serve.token_file to choose your own)")
        application = create_app(Engine(models, settings), settings, RequestLog(folder / LOG, settings.log), token)
        try:
            run_server(application, socket)
        except Interrupted:  # how a server is stopped
            console.print("stopped")
