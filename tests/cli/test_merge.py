"""`tunesmith merge`: from two finished runs to one that is shown, deployed and served, and what people get wrong."""

import pytest

from tunesmith.base import Run
from tunesmith.serving import server


@pytest.fixture
def runs(tunesmith, task):
    for name, rank in (("a", 4), ("b", 2)):
        recipe = task(initialise={"adapter": {"rank": rank}}, evaluate={
            "graders": [{"kind": "exact"}], "max_tokens": 4, "general": None, "shots": 0, "baselines": False, "gate": {"margin": None, "beat": []},
        })  # fmt: skip
        code, _, error = tunesmith("evaluate", recipe, "--run", f"runs/{name}")
        assert code == 0, error
    return "runs/a", "runs/b"


def test_two_runs_become_one_that_can_be_served(tunesmith, runs, tmp_path, monkeypatch):
    for words, told in (
        (["--method", "teis"], "did you mean 'ties'"),
        (["--method", "linear"], "these runs have 4, 2; take cat or svd"),
        (["--weights", "1,2,3"], "there are 3, for 2 runs"),
        (["merge.method.densty=0.3", "--method", "ties"], "did you mean 'density'"),
    ):
        code, _, error = tunesmith("merge", *runs, *words, "--out", "runs/bad")
        assert code == 2
        assert told in error
        assert len([line for line in error.splitlines() if line.startswith("tunesmith: ")]) == 1

    words = ["--method", "ties", "--weights", "1,0.5", "merge.method.density=0.5"]
    code, out, error = tunesmith("merge", *runs, *words, "--out", "runs/ab")
    assert code == 0, error
    assert out.splitlines()[-1] == "runs/ab"
    for heading in ("a: exact in", "b: exact in", "merged is better by", "Promoted."):
        assert heading in error
    merged = Run(tmp_path / "runs" / "ab").artifact("merge")
    assert merged.manifest["spec"]["method"] == {"kind": "ties", "rank": None, "density": 0.5}
    assert merged.metrics["weights"] == [1.0, 0.5]

    code, out, _ = tunesmith("show", "runs/ab")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines() if line[:1].strip()] == ["merge", "evaluate", "deploy"]
    assert out.count("merged is better by") == 4
    assert tunesmith("deploy", "runs/ab", "deploy.weights=bf16")[0] == 0
    (tmp_path / "runs" / "ab" / "report.html").unlink()
    code, out, error = tunesmith("report", "runs/ab")
    assert (code, out.splitlines()[-1]) == (0, "runs/ab/report.html"), error
    page = (tmp_path / "runs" / "ab" / "report.html").read_text()
    for said in (
        "2 runs became one model by <b>ties</b>",
        "Merged minus each",
        "merging changed the logits",
        'id="task-2"',
    ):
        assert said in page

    served = []
    monkeypatch.setattr(server, "run_server", lambda application, port: served.append(application))
    code, _, error = tunesmith("serve", "runs/ab", "--port", "0")
    assert code == 0, error
    assert "serving tuned, base at" in error

    code, _, error = tunesmith("serve", *runs, "--port", "0")
    assert code == 2
    assert "stage 'deploy' is not started" in error
    for run in runs:
        assert tunesmith("deploy", run, "deploy.ungated=true")[0] == 0
    code, _, error = tunesmith("serve", *runs, "runs/ab", "--port", "0")
    assert code == 0, error
    assert "serving base, a, b, ab at" in error
    assert len(served) == 2
    code, _, error = tunesmith("serve", "runs/a", "runs/a", "--port", "0")
    assert "there is a model called a already" in error
