"""Preparing many rows against TRL's mapping passes, files to tokens: `make bench`, or

python benchmarks/prepare.py --peer .venv-trl/bin/python [--work two-hundred thousand ten-thousand hundred-thousand] [--rounds 2]

tunesmith's side is the whole stage as the default recipe has it: parse, check, split, exact copies, near copies across splits, chat template,
tokens, mask, and every file of the artifact. TRL's is what SFTTrainer maps: chat template, tokens, mask, truncation.
"""

from rounds import OURS, Contender, compare


def contenders(count: int, *, processes: bool = True) -> dict[str, Contender]:
    """Both sides at so many rows; TRL's also with the second process that its settings allow."""
    rows = ("--rows", str(count))
    found = {OURS: Contender("ours_prepare.py", rows), "TRL default": Contender("trl_prepare.py", rows, peer=True)}
    if processes:
        found["TRL, 2 processes"] = Contender("trl_prepare.py", (*rows, "--processes", "2"), peer=True)
    return found


WORKS = {
    "two-hundred": contenders(200, processes=False),
    "thousand": contenders(1_000, processes=False),
    "ten-thousand": contenders(10_000),
    "hundred-thousand": contenders(100_000, processes=False),  # which at ten thousand rows were slower than one
}

if __name__ == "__main__":
    compare(WORKS, "Data preparation against TRL's mapping passes.", "prepare")
