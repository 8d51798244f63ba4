"""One server, one base in memory, several adapters: the `model` of a request chooses."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from tunesmith.methods.adapters import trainable
from tunesmith.methods.adapters.lora import LoRA
from tunesmith.methods.several import Several
from tunesmith.models.generate import Sampling, generate
from tunesmith.serving.engine import Engine
from tunesmith.serving.settings import Serve

from .conftest import serve

NAMES = ("base", "a", "b")
TEXTS = ("the sea", "a long road to the sea", "one")


@pytest.fixture
def folders(tiny, tmp_path):
    made = {}
    for number, name in enumerate(NAMES[1:]):
        loaded = tiny("base", 0)
        LoRA(rank=2 + number).attach(loaded, number)
        with torch.no_grad():
            for parameter in trainable(loaded.model).values():
                parameter += 0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
        LoRA(rank=2 + number).save(loaded, tmp_path / name)
        made[name] = tmp_path / name
    return made


def test_requests_at_once_get_what_each_adapter_says_alone(tiny, folders, tmp_path, tokenizer):
    prompts = [tokenizer(text, add_special_tokens=False).input_ids for text in TEXTS]
    expected = {}
    for number, name in enumerate(NAMES):
        loaded = tiny("base", 0)
        if name in folders:
            LoRA(rank=1 + number).restore(loaded, folders[name])
        expected[name] = [one.text for one in generate(loaded, prompts, Sampling(max_tokens=12))]
    assert len({str(one) for one in expected.values()}) == 3
    settings = Serve(port=0)
    several = Several(tiny("base", 0), folders)
    for running in serve(Engine(several.models, settings), settings, tmp_path / "log.sqlite"):
        found = asked_at_once(running.openai)
    assert found == expected


def asked_at_once(client):
    """What each model says to each text, all asked together."""

    def ask(name, text):
        return client.completions.create(model=name, prompt=text, max_tokens=12).choices[0].text

    assert [one.id for one in client.models.list()] == list(NAMES)
    with ThreadPoolExecutor(9) as pool:
        futures = {name: [pool.submit(ask, name, text) for text in TEXTS] for name in NAMES}
        return {name: [future.result() for future in each] for name, each in futures.items()}
