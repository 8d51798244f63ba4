import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import httpx
import openai
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tunesmith.models import attention
from tunesmith.models.load import Loaded
from tunesmith.serving.api import create_app
from tunesmith.serving.engine import Engine
from tunesmith.serving.log import RequestLog
from tunesmith.serving.server import open_port, server
from tunesmith.serving.settings import RequestLogging, Serve

TOKEN = "a-token-for-tests-only"
CONTEXT = 512


@dataclass
class Running:
    """A live server and how to talk to it."""

    url: str
    engine: Engine
    log: Path

    @cached_property
    def openai(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key=TOKEN, max_retries=0, timeout=30)

    @cached_property
    def http(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {TOKEN}"}, timeout=30)


@pytest.fixture(scope="session")
def tokenizer(short_tokenizer):
    return short_tokenizer


@pytest.fixture(scope="session")
def tiny(tokenizer):
    """Makes a random Llama of some ten thousand parameters with a real tokenizer's first words; `seed` tells models apart."""

    attention.register()

    def make(name: str, seed: int) -> Loaded:
        torch.set_num_threads(1)
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=CONTEXT,
            tie_word_embeddings=True,
            initializer_range=0.6,
        )
        model = LlamaForCausalLM(config).eval()
        return Loaded(name, Path(name), model, tokenizer, "fp32", forest=attention.adopt(model))

    return make


def serve(engine: Engine, settings: Serve, path: Path) -> Iterator[Running]:
    """Run a real server in a thread until the generator is closed."""
    application = create_app(engine, settings, RequestLog(path, settings.log), TOKEN)
    port = open_port(settings)
    running = server(application)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [port]})
    thread.start()
    while not running.started:
        time.sleep(0.01)
    yield Running(f"http://127.0.0.1:{port.getsockname()[1]}", engine, path)
    running.should_exit = True
    thread.join(timeout=20)
    assert not thread.is_alive()


@pytest.fixture(scope="session")
def live(tiny, tmp_path_factory) -> Iterator[Running]:
    settings = Serve(
        port=0, body_limit=20_000, prompt_limit=300, answer_limit=200, answer_default=24, log=RequestLogging()
    )
    engine = Engine({"base": tiny("base", 0), "tuned": tiny("tuned", 1)}, settings)
    yield from serve(engine, settings, tmp_path_factory.mktemp("serving") / "requests.sqlite")
