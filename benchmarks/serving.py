"""Servers with one, four and sixteen clients, against transformers' own and against ours with a batch of one: `make bench`, or

python benchmarks/serving.py --peer .venv-trl/bin/python [--work one four sixteen] [--rounds 2]

The peer's servers run in this environment, which has the packages that serving needs.
"""

from rounds import OURS, Contender, compare

SERVERS = {
    OURS: "tunesmith",
    "tunesmith, one at a time": "one at a time",
    "transformers serve": "transformers",
    "transformers serve, continuous batching": "transformers continuous",
}
WORKS = {
    name: {
        label: Contender("serving.py", ("--server", server, "--clients", str(count)))
        for label, server in SERVERS.items()
        if label not in left_out
    }
    for name, count, left_out in (
        ("one", 1, {"tunesmith, one at a time", "transformers serve, continuous batching"}),
        ("four", 4, set[str]()),
        ("sixteen", 16, {"transformers serve"}),  # which would answer one after the other
    )
}

if __name__ == "__main__":
    compare(WORKS, "Servers with one, four and sixteen clients.", "serving")
