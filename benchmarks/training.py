"""Fine-tuning against TRL, whole steps on the same rows: `make bench`, or

python benchmarks/training.py --peer .venv-trl/bin/python [--work lora int8 full dora fp32 dpo grpo] [--rounds 2]
"""

from rounds import OURS, Contender, compare

MALLOC = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "100000000000"}
"""What an expert sets to keep glibc from handing pages back."""


def ours(*arguments: str) -> Contender:
    """tunesmith's loop."""
    return Contender("ours.py", arguments)


def trl(*arguments: str, **variables: str) -> Contender:
    """TRL's trainer."""
    return Contender("trl_sft.py", arguments, peer=True, variables=variables)


WORKS = {
    "lora": {
        OURS: ours(),
        "TRL default": trl(),
        "TRL best": trl("--best"),
        "TRL best, malloc tuned": trl("--best", **MALLOC),
        "tunesmith, no sharing": ours("--no-sharing"),
        "tunesmith, transformers' layers": ours("--generic"),
    },
    "int8": {OURS: ours("--int8"), "tunesmith in bf16": ours()},
    "full": {
        OURS: ours("--full"),
        "TRL default": trl("--full", "--steps", "6"),
        "TRL best": trl("--full", "--best", "--steps", "6"),
    },
    "dora": {
        OURS: ours("--dora"),
        "tunesmith, LoRA": ours(),
        "TRL default": trl("--dora", "--steps", "6"),
        "TRL best": trl("--dora", "--best", "--steps", "6"),
    },
    "fp32": {OURS: ours("--fp32"), "TRL": trl("--fp32", "--steps", "6")},
    "dpo": {
        OURS: Contender("ours_dpo.py"),
        "TRL default": Contender("trl_dpo.py", peer=True),
        "TRL best": Contender("trl_dpo.py", ("--best",), peer=True),
    },
    "grpo": {
        OURS: Contender("ours_grpo.py"),
        "TRL default": Contender("trl_grpo.py", peer=True),
        "TRL best": Contender("trl_grpo.py", ("--best",), peer=True),
    },
}

if __name__ == "__main__":
    compare(WORKS, "Fine-tuning against TRL's: LoRA, full, float32, preferences and rewards.", "training")
