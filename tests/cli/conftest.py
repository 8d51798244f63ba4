import json
import sys

import pytest

from tunesmith import cli


@pytest.fixture
def tunesmith(monkeypatch, capsys, tmp_path):
    """Runs a command in an empty folder; gives its exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["tunesmith", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out, printed.err

    return call


@pytest.fixture
def task(tmp_path, tiny_folder):
    """Writes a small task and a recipe for it, settings as keyword arguments; gives the recipe's path."""
    colours = ["red", "green", "blue", "black"]
    rows = [
        {"messages": [{"role": "user", "content": f"Shade {n}?"}, {"role": "assistant", "content": colours[n % 4]}]}
        for n in range(40)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))

    def write(**sections: object) -> str:
        recipe = {
            "model": str(tiny_folder),
            "precision": "fp32",
            "prepare": {"source": "rows.jsonl", "test_fraction": 0.25, "cleaners": []},
            "finetune": {"epochs": 1.0, "batch": 5, "checkpoint_every": 2},
            "evaluate": {"graders": [{"kind": "exact"}], "max_tokens": 4, "general": None, "gate": {"margin": None}},
            "deploy": {"ungated": True},
            **sections,
        }
        path = tmp_path / "task.yaml"
        path.write_text(json.dumps(recipe))
        return str(path)

    return write
