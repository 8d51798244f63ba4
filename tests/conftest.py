import copy
import gc
import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM

from tunesmith.data.example import Example, Row, Sequence
from tunesmith.data.render import Renderer
from tunesmith.methods.objectives.base import (
    ADVANTAGE,
    OLD,
    RETURN,
    START,
    TAUGHT,
    TAUGHT_LOGP,
    VALUE,
    reference,
    reward,
)
from tunesmith.methods.objectives.kto import LABEL
from tunesmith.models import attention
from tunesmith.models.load import Loaded, load_tokenizer

torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # of programs that tests start: two processes test on two cores
settings.register_profile("untimed", deadline=None)  # a disk may be slow, or the machine busy: no test is timed
settings.load_profile("untimed")

SMALL = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
"""What every tiny model has in common; an architecture that does not know a field ignores it."""


WORDS = 4096
"""Of the vocabulary of tiny models."""
LONG = (
    "test_quickstart.py",
    "test_pipeline.py",
    "test_deployed.py",
    "test_fused_operations.py",
    "test_wrong_inputs.py",
)
"""Files whose tests start programs: they begin, so that the end is many short files, which two processes share evenly."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of the torture tests (`make torture`)."""
    parser.addoption("--whole", action="store_true", help="torture with all trials, and keep what they came to")
    parser.addoption("--peer", help="the Python of an environment with TRL, to be tried too")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Order tests by their file: the long ones, those of the stages, the rest. A whole torture is what `-m torture` chooses."""
    for item in items:
        if config.getoption("--whole") and item.path.parent.name == "torture":
            item.add_marker("torture")
    items.sort(key=lambda item: (item.path.name not in LONG, item.path.parent.name != "stages"))


def pytest_collection_finish(session: pytest.Session) -> None:
    """What is imported by now stays: without this, collecting garbage, as each measurement of memory begins, looks at all of it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def smollm_tokenizer():
    """The real tokenizer of SmolLM2; take a copy before changing it."""
    return load_tokenizer("smollm2-135m")


@pytest.fixture(scope="session")
def short_tokenizer(smollm_tokenizer):
    """The first words of SmolLM2's tokenizer: its special ones, the bytes, and what its first merges make. It is read in a tenth of the time."""
    told = json.loads(smollm_tokenizer.backend_tokenizer.to_str())
    words = {word: number for word, number in told["model"]["vocab"].items() if number < WORDS}
    told["model"]["vocab"] = words
    told["model"]["merges"] = [pair for pair in told["model"]["merges"] if "".join(pair) in words]
    tokenizer = copy.deepcopy(smollm_tokenizer)
    tokenizer._tokenizer = Tokenizer.from_str(json.dumps(told))
    return tokenizer


@pytest.fixture(scope="session")
def build(short_tokenizer):
    """Makes a random model of an architecture, in memory; `spread` is the standard deviation of all its weights."""
    attention.register()

    def make(kind: str = "llama", seed: int = 0, spread: float | None = None, dtype=torch.float32, **fields) -> Loaded:
        torch.manual_seed(seed)
        config = AutoConfig.for_model(kind, **{**SMALL, "vocab_size": WORDS, **fields})
        model = AutoModelForCausalLM.from_config(config).to(dtype).eval()
        if spread is not None:
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.normal_(0, spread)
        loaded = Loaded(
            kind, Path(kind), model, copy.deepcopy(short_tokenizer), "bf16" if dtype == torch.bfloat16 else "fp32"
        )
        loaded.forest = attention.adopt(model)
        return loaded

    return make


@pytest.fixture(scope="session")
def tiny_folder(build, tmp_path_factory) -> Path:
    """A folder with a tiny random Llama and its tokenizer, as save_pretrained writes them."""
    folder = tmp_path_factory.mktemp("tiny-llama")
    loaded = build("llama", seed=7)
    loaded.model.save_pretrained(folder)
    loaded.tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def rows(short_tokenizer) -> list[Row]:
    """Thirteen short demonstrations with a common system prompt."""
    renderer = Renderer(short_tokenizer)
    colours = (
        "red",
        "green",
        "blue",
        "black",
        "white",
        "grey",
        "pink",
        "brown",
        "teal",
        "gold",
        "plum",
        "navy",
        "lime",
    )
    system = {"role": "system", "content": "You name colours."}
    return [
        renderer.row(
            Example(
                f"train.jsonl:{number + 1}",
                (system, {"role": "user", "content": f"colour {number}?"}),
                (({"role": "assistant", "content": " ".join([colour] * (1 + number % 3))},),),
            )
        )
        for number, colour in enumerate(colours)
    ]


@pytest.fixture
def random_rows():
    """Makes rows of random tokens that share prefixes: `count` rows of `answers` sequences each."""

    def make(count: int = 3, answers: int = 1, vocabulary: int = 97, seed: int = 0, **columns: float) -> list[Row]:
        generator = np.random.default_rng(seed)
        system = generator.integers(3, vocabulary, 9)
        made = []
        for number in range(count):
            prompt = np.concatenate([system, generator.integers(3, vocabulary, generator.integers(1, 8))])
            sequences = []
            for _ in range(answers):
                tokens = np.concatenate([prompt, generator.integers(3, vocabulary, generator.integers(3, 9))])
                sequences.append(Sequence(tokens.astype(np.int32), np.arange(len(tokens)) >= len(prompt)))
            made.append(Row(f"random:{number + 1}", tuple(sequences), columns))
        return made

    return make


@pytest.fixture
def answered(random_rows):
    """Three rows of two answers with every column that an objective may read."""
    columns = {reference(0): -9.0, reference(1): -11.0, reward(0): 1.0, reward(1): 0.0, LABEL: 1.0}
    made = []
    for row in random_rows(3, answers=2, **columns):
        told = {
            name: np.float32(value)
            for name, value in ((OLD, -4.5), (START, -4.5), (VALUE, 0.1), (ADVANTAGE, 0.5), (RETURN, 0.8))
        }
        told |= {TAUGHT: np.arange(3, 6, dtype=np.int32), TAUGHT_LOGP: np.log([0.4, 0.2, 0.1]).astype(np.float32)}
        sequences = tuple(
            replace(each, columns={name: np.stack([value] * each.learn.sum()) for name, value in told.items()})
            for each in row.sequences
        )
        made.append(replace(row, sequences=sequences))
    return made
