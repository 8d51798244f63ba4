"""R13: what was tuned says the same in memory, from its adapter's file, merged, as a GGUF file, and over HTTP."""

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
import torch
from subjects import Tunesmith

from tunesmith.base import Artifact, Run
from tunesmith.data.render import Renderer
from tunesmith.methods.adapters.lora import LoRA
from tunesmith.models import attention
from tunesmith.models.generate import Sampling, generate
from tunesmith.models.gguf_export import write
from tunesmith.models.load import load
from tunesmith.serving.api import create_app
from tunesmith.serving.engine import Engine
from tunesmith.serving.log import RequestLog
from tunesmith.serving.server import open_port, server
from tunesmith.serving.settings import Serve
from tunesmith.stages import finetune
from tunesmith.stages.initialise import ROUNDED
from tunesmith.stages.pipeline import Pipeline
from tunesmith.stages.recipe import read_recipe
from tunesmith.stages.served import models_of

PROMPTS, TOKENS = 50, 8
LOWER = ("f16", "bf16", "q8_0")
EXACT = 1e-4
"""Largest gap of a logit, of the order of 1, at full precision: the order of sums differs where weights are merged."""
TOKEN = "a-token-for-tests-only"


def asked(number: int) -> list[dict[str, str]]:
    """A prompt as a client sends it."""
    return [{"role": "user", "content": f"Shade {number * 7}{'' if number % 3 else ', please'}?"}]


def answers(loaded, prompts: Sequence[list[int]]) -> list[str]:
    """Greedy ones."""
    return [one.text for one in generate(loaded, prompts, Sampling(max_tokens=TOKENS))]


@torch.no_grad()
def logits(loaded, prompts: Sequence[list[int]]) -> torch.Tensor:
    """Float32 of every prompt's last token, by transformers' own layers and attention: nothing of ours but the weights."""
    loaded.model.eval()
    loaded.release()
    with attention.plain(loaded.model):
        found = [loaded.model(input_ids=torch.tensor([one]), use_cache=False).logits[0, -1].float() for one in prompts]
    return torch.stack(found)


@contextmanager
def serving(deployed: Artifact, log: RequestLog | None = None) -> Iterator[httpx.Client]:
    """The server of a run, at a port of its own; `log` keeps what it is asked."""
    settings = Serve(port=0)
    engine = Engine(models_of(deployed, {}), settings)
    port = open_port(settings)
    running = server(create_app(engine, settings, log, TOKEN))
    thread = threading.Thread(target=running.run, kwargs={"sockets": [port]})
    thread.start()
    while not running.started:
        time.sleep(0.01)
    with httpx.Client(
        base_url=f"http://127.0.0.1:{port.getsockname()[1]}", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=60
    ) as client:
        yield client
    running.should_exit = True
    thread.join(timeout=20)


def tuned(folder: Path, model: Path, prompts: Sequence[list[int]]) -> tuple[Run, list[str], torch.Tensor]:
    """A run that is deployed, with what its model said, and its logits, in the memory that it was trained in."""
    Tunesmith().set_up(folder, model)
    settings = (
        "deploy.ungated=true",
        "deploy.gguf=f32",
        "evaluate.baselines=false",
        "initialise.adapter.alpha=16",
        "evaluate.rows=4",
    )
    said = []
    conclude = finetune.conclude

    def listened(begun, out):
        conclude(begun, out)
        said.append((answers(begun.training.loaded, prompts), logits(begun.training.loaded, prompts)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune, "conclude", listened)
        run = Run(folder / "run")
        Pipeline(read_recipe(folder / "recipe.yaml", settings), run).locked("deploy")
    ((told, expected),) = said
    return run, told, expected


def test_the_same_answers_from_memory_to_http(tally, tiny_folder, short_tokenizer, tmp_path, monkeypatch, many):
    counted = tally("R13", "in memory = adapter's file = merged = exported (GGUF in f32) = served over HTTP: the same greedy answers to 50 prompts")  # fmt: skip
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    renderer, chats = Renderer(short_tokenizer), [asked(number) for number in range(many(PROMPTS, PROMPTS))]
    prompts = [renderer.prompt(chat, ()) for chat in chats]
    run, said, expected = tuned(tmp_path, tiny_folder, prompts)
    base = load(str(tiny_folder), "fp32")
    assert sum(map(str.__ne__, answers(base, prompts), said)) > PROMPTS // 2  # what was learnt is heard
    beside = load(str(tiny_folder), "fp32")
    LoRA(rank=4, alpha=16, dropout=0.1).restore(beside, run.artifact("finetune") / "adapter")
    deployed = run.artifact("deploy")
    merged = load(str(deployed / "model"), "fp32")
    ways = {"adapter's file": beside, "merged": merged}
    written = [deployed / "model.gguf", *(tmp_path / f"{kind}.gguf" for kind in LOWER)]
    for file in written[1:]:
        write(merged.model, merged.tokenizer, file, file.stem)
    ways |= {f"GGUF {kind}": load(str(file), "fp32") for kind, file in zip(("f32", *LOWER), written, strict=True)}
    rounded_ways = [f"GGUF {kind}" for kind in LOWER]
    for way, loaded in ways.items():
        if way not in rounded_ways:
            own = [Renderer(loaded.tokenizer).prompt(chat, ()) for chat in chats]
            assert own == prompts, way
            compare(counted, way, said, answers(loaded, own), float((logits(loaded, own) - expected).abs().max()))
    with serving(deployed) as client:
        over_http = [spoken(client, chat) for chat in chats]
    compare(counted, "served over HTTP", said, over_http, None)
    lower = tally("R13-lower", "lower precisions of the merged model stay within what rounding explains; gaps and equal answers in the reasons")  # fmt: skip
    ways = {
        **{way: ways[way] for way in rounded_ways},
        **{one: load(str(deployed / "model"), one) for one in ("bf16", "int8", "nf4")},
    }
    for way, loaded in ways.items():
        apart = logits(loaded, prompts).log_softmax(-1) - expected.log_softmax(-1)
        rounded, equal = float(apart.square().mean().sqrt()), sum(map(str.__eq__, answers(loaded, prompts), said))
        figures = f"{equal} of {len(said)} answers equal, largest gap {float(apart.abs().max()):.2g}, rms {rounded:.2g}"
        lower.note(way, "held" if rounded < ROUNDED else "loud", figures)


def spoken(client: httpx.Client, chat: list[dict[str, str]]) -> str:
    """A greedy answer of the server."""
    body = {"model": "tuned", "messages": chat, "temperature": 0, "max_tokens": TOKENS}
    reply = client.post("/v1/chat/completions", json=body)
    reply.raise_for_status()
    return str(reply.json()["choices"][0]["message"]["content"])


def compare(counted, way: str, said: list[str], found: list[str], gap: float | None) -> None:
    """A trial for each prompt, and one for the logits."""
    for number, (one, other) in enumerate(zip(said, found, strict=True)):
        counted.verdict(f"{way}: prompt {number}", one.strip() == other.strip(), reason=f"{one!r} became {other!r}")
    if gap is not None:
        counted.note(f"{way}: logits", "held" if gap < EXACT else "silent", f"largest gap {gap:.2g}")


ASKED = ("What is the capital of France?", "Count from 1984 to 1990.", "Write one sentence about  rain.\nThen stop.", "Ünï 😀 code: x=3+4?")  # fmt: skip


@pytest.mark.torture
def test_llama_cpp_says_the_same(tally, tmp_path):
    """The program that most such files are for: it reads the same tokens of a chat, and answers the same at full precision."""
    import xllamacpp

    counted = tally("R13-llama.cpp", "llama.cpp reads a GGUF file in f32 of SmolLM2-135M: the same prompt tokens and greedy answers as here")  # fmt: skip
    loaded = load("smollm2-135m", "fp32")
    renderer = Renderer(loaded.tokenizer)
    prompts = [renderer.prompt([{"role": "user", "content": text}]) for text in ASKED]
    said = [one.text for one in generate(loaded, prompts, Sampling(max_tokens=24))]
    loaded.release()
    write(loaded.model, loaded.tokenizer, tmp_path / "model.gguf", "f32")
    settings = xllamacpp.CommonParams()
    settings.model.path, settings.warmup, settings.n_ctx = str(tmp_path / "model.gguf"), False, 512
    server = xllamacpp.Server(settings)
    for text, prompt, expected in zip(ASKED, prompts, said, strict=True):
        body = {"messages": [{"role": "user", "content": text}], "temperature": 0, "max_tokens": 24}
        reply = server.handle_chat_completions(body)
        counted.verdict(f"{text!r}: tokens", reply["usage"]["prompt_tokens"] == len(prompt))
        found = reply["choices"][0]["message"]["content"]
        counted.verdict(f"{text!r}: answer", found == expected, reason=f"{expected!r} became {found!r}")
