"""`sample` prints where its rows are, and a wrong showdown is one line."""

import json
from pathlib import Path


def test_sample_prints_the_file_of_its_rows(tunesmith, task):
    paid = {"rewards": [{"grader": {"kind": "chrf"}}], "samples": 2, "max_tokens": 4}
    code, out, error = tunesmith("sample", task(sample={"system": "base", **paid}), "sample.keep=pairs")
    assert code == 0, error
    rows = [json.loads(line) for line in Path(out.strip()).read_text().splitlines()]
    assert {"prompt", "chosen", "rejected", "origin"} <= set(rows[0])
    assert "prompts answered, reward" in error
    code, _, error = tunesmith("sample", task(sample={"system": "base", **paid, "keep": "worst"}))
    assert code == 2
    assert "sample.keep" in error


def test_a_showdown_that_makes_no_sense_is_one_line(tunesmith, tmp_path):
    (tmp_path / "bad.yaml").write_text("base: {}\nstart: {}\nroads: {sft: {}}\nagainst: sft\nbudget: 10\n")
    code, _, error = tunesmith("showdown", "bad.yaml")
    assert code == 2
    assert "bad.yaml: roads" in error
    assert "Traceback" not in error
