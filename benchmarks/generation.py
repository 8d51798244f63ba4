"""Greedy answers against transformers' `generate`, prompts and all: `make bench`, or

python benchmarks/generation.py --peer .venv-trl/bin/python [--work one sixteen] [--rounds 2]
"""

from rounds import OURS, Contender, compare

WORKS = {
    name: {
        OURS: Contender("ours_generate.py", ("--batch", str(count))),
        "transformers": Contender("transformers_generate.py", ("--batch", str(count)), peer=True),
    }
    for name, count in {"one": 1, "sixteen": 16, "sixty-four": 64}.items()
}

if __name__ == "__main__":
    compare(WORKS, "Generation against transformers' generate, both in bf16.", "generation")
