"""tunesmith's side of the data benchmark: `python ours_prepare.py --model FOLDER --rows 100000`, the whole stage as a recipe calls it."""

import time

STARTED = time.perf_counter()

import argparse  # noqa: E402  the clock starts before anything is imported
import tempfile  # noqa: E402
from pathlib import Path  # noqa: E402

from many_rows import write_rows  # noqa: E402
from rows import MAX_LENGTH, report_rows  # noqa: E402

from tunesmith.base import Run  # noqa: E402
from tunesmith.base.files import read_json  # noqa: E402
from tunesmith.stages.prepare import STAGE, Prepare, input_files  # noqa: E402


def main() -> None:
    """Prepare and report."""
    imported = time.perf_counter() - STARTED
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--rows", type=int, required=True)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "train.jsonl"
        write_rows(source, given.rows)
        spec = Prepare(source=str(source), max_tokens=MAX_LENGTH)
        run = Run(Path(folder) / "run")
        run.path.mkdir()
        start = time.perf_counter()
        made = run.once(STAGE, spec, inputs=input_files(spec), tokenizer_name=given.model, seed=0)
        seconds = time.perf_counter() - start + imported
        splits = read_json(made / "summary.json")["splits"].values()
    report_rows(seconds, given.rows, sum(split["rows"] for split in splits), sum(split["tokens"] for split in splits))


if __name__ == "__main__":
    main()
