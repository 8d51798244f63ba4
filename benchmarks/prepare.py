"""Preparing many rows against TRL's mapping passes, files to tokens: `make bench`, or

python benchmarks/prepare.py --peer .venv-trl/bin/python [--work thousand ten-thousand hundred-thousand] [--rounds 2]

tunesmith's side is the whole stage as the default recipe has it: parse, check, split, exact copies, near copies across splits, chat template,
tokens, mask, and every file of the artifact. TRL's is what SFTTrainer maps: chat template, tokens, mask, truncation.
"""

from rounds import OURS, Contender, compare

WORKS = {
    name: {
        OURS: Contender("ours_prepare.py", ("--rows", str(count))),
        "TRL default": Contender("trl_prepare.py", ("--rows", str(count)), peer=True),
        "TRL, 2 processes": Contender("trl_prepare.py", ("--rows", str(count), "--processes", "2"), peer=True),
    }
    for name, count in {"thousand": 1_000, "ten-thousand": 10_000, "hundred-thousand": 100_000}.items()
}

if __name__ == "__main__":
    compare(WORKS, "Data preparation against TRL's mapping passes.", "prepare")
