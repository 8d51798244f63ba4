"""tunesmith's server of one model, as `tunesmith serve` starts it for a run: `python ours_server.py --model FOLDER --port 8001 --batch 16`."""

import argparse
import os
import tempfile
from pathlib import Path

from tunesmith.models.load import load
from tunesmith.serving.api import create_app
from tunesmith.serving.engine import Engine
from tunesmith.serving.log import RequestLog
from tunesmith.serving.server import find_token, open_port, run_server
from tunesmith.serving.settings import Serve


def main() -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--batch", type=int, default=16)
    given = parser.parse_args()
    os.environ["TUNESMITH_TOKEN"] = "a-token-for-benchmarks"
    settings = Serve(port=given.port, batch=given.batch)
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine({given.model: load(given.model, "bf16")}, settings)
        log = RequestLog(Path(folder) / "requests.sqlite", settings.log)
        run_server(create_app(engine, settings, log, find_token(settings)[0]), open_port(settings))


if __name__ == "__main__":
    main()
