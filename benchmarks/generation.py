"""Greedy answers against transformers' `generate`, and with weights in few bits against bf16, prompts and all: `make bench`, or

python benchmarks/generation.py --peer .venv-trl/bin/python [--work one sixteen] [--rounds 2]
"""

from rounds import OURS, Contender, compare

COUNTS = {"one": ("--batch", "1"), "sixteen": ("--batch", "16"), "sixty-four": ("--batch", "64")}
WORKS = {
    name: {
        OURS: Contender("ours_generate.py", count),
        "transformers": Contender("transformers_generate.py", count, peer=True),
    }
    for name, count in COUNTS.items()
} | {
    f"{name} in {few}": {
        OURS: Contender("ours_generate.py", (*COUNTS[name], "--precision", few)),
        "tunesmith in bf16": Contender("ours_generate.py", COUNTS[name]),
    }
    for few in ("int8", "nf4")
    for name in ("one", "sixteen")
}

if __name__ == "__main__":
    compare(WORKS, "Generation against transformers' generate, both in bf16.", "generation")
