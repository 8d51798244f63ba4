"""R13: what was tuned says the same in memory, from its adapter's file, merged, as a GGUF file, and over HTTP."""

import json
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import gguf
import httpx
import numpy as np
import pytest
import torch
from subjects import Tunesmith

from tunesmith.base import Artifact, Run
from tunesmith.data.render import Renderer
from tunesmith.methods.adapters.lora import LoRA
from tunesmith.models import attention
from tunesmith.models.generate import Sampling, generate
from tunesmith.models.load import load
from tunesmith.serving.api import create_app
from tunesmith.serving.engine import Engine
from tunesmith.serving.server import open_port, server
from tunesmith.serving.settings import Serve
from tunesmith.stages import finetune
from tunesmith.stages.initialise import ROUNDED
from tunesmith.stages.pipeline import Pipeline
from tunesmith.stages.recipe import read_recipe
from tunesmith.stages.served import models_of

PROMPTS, TOKENS = 50, 8
EXACT = 1e-4
"""Largest gap of a logit, of the order of 1, at full precision: the order of sums differs where weights are merged."""
TOKEN = "a-token-for-tests-only"
NAMES = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj", "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}  # fmt: skip


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


def write_gguf(path: Path, model, tokenizer, half: bool) -> None:
    """The file that llama.cpp's converter would write of a Llama: names of its own, and rotary halves side by side."""
    config, bpe = model.config, json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    writer = gguf.GGUFWriter(path, "llama")
    for name, value in {
        "context_length": config.max_position_embeddings, "embedding_length": config.hidden_size, "feed_forward_length": config.intermediate_size,
        "block_count": config.num_hidden_layers, "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": config.num_key_value_heads, "rope.dimension_count": config.head_dim, "vocab_size": config.vocab_size,
    }.items():  # fmt: skip
        writer.add_uint32(f"llama.{name}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", config.rms_norm_eps)
    writer.add_float32("llama.rope.freq_base", config.rope_parameters["rope_theta"])
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    words = sorted(bpe["vocab"], key=bpe["vocab"].get)
    special = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    writer.add_token_list(words)
    writer.add_token_types([3 if number in special else 1 for number in range(len(words))])
    writer.add_token_merges([" ".join(pair) for pair in bpe["merges"]])
    for name in ("unk", "bos", "eos", "pad"):
        getattr(writer, f"add_{name}_token_id")(getattr(tokenizer, f"{name}_token_id"))
    writer.add_chat_template(tokenizer.chat_template)
    for name, tensor in model.state_dict().items():
        own, heads = renamed(name), {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
        array = tensor.float().numpy()
        if count := heads.get(name.split(".")[-2]):
            array = array.reshape(count, 2, -1, array.shape[1]).swapaxes(1, 2).reshape(array.shape)
        writer.add_tensor(own, array.astype(np.float16) if half and array.ndim == 2 else array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def renamed(name: str) -> str:
    """A tensor's name in a GGUF file."""
    whole = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight", "lm_head.weight": "output.weight"}  # fmt: skip
    if name in whole:
        return whole[name]
    _, _, block, *inner, kind = name.split(".")
    return f"blk.{block}.{next(own for own, theirs in NAMES.items() if theirs == '.'.join(inner))}.{kind}"


@contextmanager
def serving(deployed: Artifact) -> Iterator[httpx.Client]:
    """The server of a run, at a port of its own."""
    settings = Serve(port=0)
    engine = Engine(models_of(deployed, {}), settings)
    port = open_port(settings)
    running = server(create_app(engine, settings, None, TOKEN))
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
    settings = ("deploy.ungated=true", "evaluate.baselines=false", "initialise.adapter.alpha=16", "evaluate.rows=4")
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


def test_the_same_answers_from_memory_to_http(tally, tiny_folder, smollm_tokenizer, tmp_path, monkeypatch, many):
    counted = tally("R13", "in memory = adapter's file = merged = GGUF in f32 = served over HTTP: the same greedy answers to 50 prompts (the GGUF file is written by the test; there is no command that writes one)")  # fmt: skip
    monkeypatch.setenv("TUNESMITH_CACHE", str(tmp_path / "cache"))
    renderer, chats = Renderer(smollm_tokenizer), [asked(number) for number in range(many(PROMPTS, PROMPTS))]
    prompts = [renderer.prompt(chat, ()) for chat in chats]
    run, said, expected = tuned(tmp_path, tiny_folder, prompts)
    base = load(str(tiny_folder), "fp32")
    assert sum(map(str.__ne__, answers(base, prompts), said)) > PROMPTS // 2  # what was learnt is heard
    beside = load(str(tiny_folder), "fp32")
    LoRA(rank=4, alpha=16, dropout=0.1).restore(beside, run.artifact("finetune") / "adapter")
    deployed = run.artifact("deploy")
    merged = load(str(deployed / "model"), "fp32")
    ways = {"adapter's file": beside, "merged": merged}
    for kind, half in (("f32", False), ("f16", True)):
        write_gguf(tmp_path / f"tuned-{kind}.gguf", merged.model, merged.tokenizer, half)
        ways[f"GGUF {kind}"] = load(str(tmp_path / f"tuned-{kind}.gguf"), "fp32")
    for way, loaded in ways.items():
        if way != "GGUF f16":
            own = [Renderer(loaded.tokenizer).prompt(chat, ()) for chat in chats]
            assert own == prompts, way
            compare(counted, way, said, answers(loaded, own), float((logits(loaded, own) - expected).abs().max()))
    with serving(deployed) as client:
        over_http = [spoken(client, chat) for chat in chats]
    compare(counted, "served over HTTP", said, over_http, None)
    lower = tally("R13-lower", "lower precisions of the merged model stay within what rounding explains; gaps and equal answers in the reasons")  # fmt: skip
    ways = {
        "GGUF f16": ways["GGUF f16"],
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
