"""Every parser of ours by its name, with inputs that it takes, from which a fuzzer goes on."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from malformed import FORMS, good

from tunesmith.base import Artifact, DataError, Events, Run, Stage
from tunesmith.base.files import write_sealed
from tunesmith.data.columns import with_columns
from tunesmith.data.corpus import Corpus
from tunesmith.data.intake import arriving
from tunesmith.data.ledger import Ledger
from tunesmith.data.render import Renderer
from tunesmith.data.template import Template
from tunesmith.methods.merging.peft_file import rank_of
from tunesmith.models.gguf_header import check_header
from tunesmith.models.learnt import read_learnt
from tunesmith.models.load import load, load_config, load_tokenizer
from tunesmith.serving.request_error import RequestError
from tunesmith.serving.schema import Asked, ChatAsked, CompletionAsked, read
from tunesmith.stages.prepare import Prepare
from tunesmith.stages.recipe import read_recipe
from tunesmith.stages.search.trial import FACTS, PLANNED, REFUSED, Trial

Target = Callable[[bytes], object]
Targets = dict[str, tuple[Target, list[bytes]]]


def rows_of(path: Path, renderer: Renderer) -> Target:
    """From a file to tokens, as prepare goes."""

    def read(content: bytes) -> None:
        path.write_bytes(content)
        ledger = Ledger()
        items = with_columns(
            list(arriving(str(path), "train", ledger, [])), {"score": "score"} if b"score" in content else {}, ledger
        )
        Corpus(path.parent).add([item.example for item in items])
        renderer.rows(item.example for item in items[:4])

    return read


def folder_of(path: Path, name: str, read: Callable[[Path], object]) -> Target:
    """A file of a folder, then what reads the folder."""

    def target(content: bytes) -> None:
        (path / name).write_bytes(content)
        read(path)

    return target


def lines(form: str) -> bytes:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    rows: list[dict[str, Any]] = [good(form, number) for number in range(3)]
    rows[1] |= {"score": 1.5, "system": "Be kind.", "history": [["a", "b"]], "tools": tools}
    return "\n".join(map(json.dumps, rows)).encode()


RECIPE = b"""
model: smollm2-135m
seed: &n 3
prepare: {source: rows.jsonl, cleaners: [{kind: leakage, threshold: 0.8}], columns: [a], select: {kind: random, size: 0.5}}
initialise:
  adapter: {kind: lora, rank: *n, targets: [q_proj, v_proj]}
finetune: {objective: {kind: dpo, beta: 0.1}, optimizer: {kind: adamw, learning_rate: 1e-4}, epochs: 1.5}
evaluate: {graders: [{kind: exact}, {kind: json_fields}], gate: {margin: null}}
serve: {log: {redact: ["a+"]}}
"""


def targets(folder: Path, renderer: Renderer, tiny: Path) -> Targets:
    """All of them; what they read is written below `folder`."""
    return {
        **of_rows(folder, renderer),
        **of_recipes(folder),
        **of_runs(folder),
        **of_trials(folder / "trial"),
        **of_requests(renderer),
        **of_models(folder / "model", tiny),
    }


def of_rows(folder: Path, renderer: Renderer) -> Targets:
    """Files of rows in text."""
    every = [lines(form) for form in FORMS]
    listed = [b"[" + one.replace(b"\n", b",\n") + b"]" for one in every]
    given = {
        "jsonl": every,
        "json": [*listed, b'{"data": [{"prompt": "a", "answer": "b"}]}', b'{"prompt": ["a", "b"], "answer": ["c", "d"]}'],
        "csv": [
            b'prompt,answer,score\na,"b ""c""",1\nd,e,2\n',
            b"prompt;answer\na;b\n",
            b'messages\n"[{""role"": ""user"", ""content"": ""a""}, {""role"": ""assistant"", ""content"": ""b""}]"\n',
        ],
        "txt": [b"one\nmore\n\ntwo\n", b"one\ntwo\n"],
    }  # fmt: skip
    return {f"rows as {name}": (rows_of(folder / f"rows.{name}", renderer), seeds) for name, seeds in given.items()}


def of_recipes(folder: Path) -> Targets:
    """A recipe's file, and a setting on the command line."""
    (folder / "plain.yaml").write_bytes(b"prepare:\n  source: a\n")

    def setting(text: bytes) -> object:
        return read_recipe(folder / "plain.yaml", (text.decode("utf-8", "surrogateescape"),))

    return {
        "recipe": (
            folder_of(folder, "recipe.yaml", lambda place: read_recipe(place / "recipe.yaml")),
            [RECIPE, b"prepare:\n  source: a\n"],
        ),
        "setting": (
            setting,
            [b"finetune.epochs=2", b"initialise.adapter={kind: lora, rank: 4}", b"evaluate.graders=[{kind: exact}]"],
        ),
    }


def of_runs(folder: Path) -> Targets:
    """What a run's folder holds."""
    run = Run(folder / "run")
    made = run.once(Stage("prepare", 1, lambda spec, out: out.metrics.update(rows=1)), Prepare(source="a"))
    shutil.copytree(made.path, folder / "made")
    (folder / "events").mkdir()

    def events(place: Path) -> object:
        found = Events(place / "events.jsonl")
        return [*found.read("a"), *found.since(0)]

    return {
        "manifest": (
            folder_of(folder / "made", "manifest.json", Artifact.open),
            [(made.path / "manifest.json").read_bytes()],
        ),
        "events": (
            folder_of(folder / "events", "events.jsonl", events),
            [b'{"event": "a", "time": 1.5}\n{"event": "b", "time": 2}\n'],
        ),
        "run's states": (
            folder_of(run.path, "stages.json", lambda place: (Run(place).states, Run(place).artifact("prepare"))),
            [(run.path / "stages.json").read_bytes()],
        ),
    }


def of_trials(folder: Path) -> Targets:
    """What a trial of a search is known by."""
    folder.mkdir()

    def facts(place: Path) -> object:
        found = Trial(place)
        return found.number, found.settings, found.facts["by"], found.refused

    def written(name: str, value: dict[str, Any]) -> bytes:
        write_sealed(folder / name, value)
        return (folder / name).read_bytes()

    told = written(FACTS, {"number": 0, "settings": {"seed": 1}, "by": "recipe", "known": {"1": 0.5}})
    refused = folder_of(folder, REFUSED, lambda place: (Trial(place).refused or {}).get("state"))
    refused(whole := written(REFUSED, {"state": "infeasible", "reason": "too much"}))
    planned = folder_of(folder, PLANNED, lambda place: (Trial(place).planned or {}).get("needed"))
    planned(fits := written(PLANNED, {"needed": 5, "available": 9, "checkpointing": False, "reason": None}))
    trials = {"trial": (folder_of(folder, FACTS, facts), [told]), "refused trial": (refused, [whole])}
    return {**trials, "planned trial": (planned, [fits])}


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}


def of_requests(renderer: Renderer) -> Targets:
    """What a server is sent, up to the tokens of its prompts."""

    def asked(kind: type[Asked], render: Callable[[Any], object]) -> Target:
        def target(body: bytes) -> object:
            try:
                found = read(kind, body)
            except RequestError as refused:
                raise DataError(refused.message) if refused.status == 400 else refused from None
            return found.stops, found.count, found.most_tokens, found.tops, found.with_usage, render(found)

        return target

    def chat(found: ChatAsked) -> object:
        return renderer.prompt([turn.message for turn in found.messages], found.rendered_tools)

    def completion(found: CompletionAsked) -> object:
        return [renderer.plain(one) for one in found.prompts if isinstance(one, str)]

    talk = [
        {"role": "system", "content": "Be kind."}, {"role": "user", "content": [{"type": "text", "text": "a"}]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]}, {"role": "tool", "tool_call_id": "1", "content": "b"},
    ]  # fmt: skip
    common = {"model": "tuned", "max_tokens": 2, "temperature": 0.5, "n": 2, "seed": 1, "stop": ["a"], "stream": True, "stream_options": {"include_usage": True}}  # fmt: skip
    bodies = [{**common, "messages": talk, "tools": [TOOL], "logprobs": True, "top_logprobs": 2}, {"model": "tuned", "messages": talk[:2], "best_of": 1}]  # fmt: skip
    prompts: list[Any] = ["a", ["a", "b"], [1, 2], [[1], [2]]]
    return {
        "chat request": (asked(ChatAsked, chat), [json.dumps(body).encode() for body in bodies]),
        "completion request": (
            asked(CompletionAsked, completion),
            [json.dumps({**common, "prompt": one, "logprobs": 1}).encode() for one in prompts],
        ),
    }


def of_models(folder: Path, tiny: Path) -> Targets:
    """The files of a model or adapter from elsewhere: what describes it, its tokenizer's settings, its chat template, and the headers of weights."""
    shutil.copytree(tiny, folder)
    weights = (folder / "model.safetensors").read_bytes()
    end = 8 + int.from_bytes(weights[:8], "little")

    def headed(header: bytes) -> object:
        (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + weights[end:])
        return read_learnt(folder / "model.safetensors"), load(str(folder), "fp32")

    def templated(text: bytes) -> object:
        talk = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
        return Template(text.decode("utf-8", "surrogateescape"))([{"messages": talk}], "chat_template.jinja")

    def described(name: str, read: Callable[[Path], object]) -> tuple[Target, list[bytes]]:
        shutil.copytree(tiny, place := folder.with_name(f"{folder.name}-{name}"))  # what is spoiled is nobody else's
        return folder_of(place, name, read), [(place / name).read_bytes()]

    (adapter := folder.with_name("adapter")).mkdir()
    return {
        "adapter config": (
            folder_of(adapter, "adapter_config.json", rank_of),
            [b'{"peft_type": "LORA", "r": 4, "lora_alpha": 8, "bias": "none"}'],
        ),
        "model's config": described("config.json", load_config),
        "tokenizer's config": described("tokenizer_config.json", lambda place: load_tokenizer(str(place))),
        "safetensors header": (headed, [weights[8:end]]),
        "GGUF header": (
            folder_of(folder, "model.gguf", lambda place: check_header(place / "model.gguf")),
            [gguf_file(folder / "small.gguf")],
        ),
        TEMPLATE: (templated, [b"{% for m in messages %}<{{ m['role'] }}>{{ m.content | trim }}{% endfor %}{{ raise_exception('a') if not messages }}"]),
    }  # fmt: skip


TEMPLATE = "chat template"
"""Each of its inputs takes a process of its own, so there are fewer of them."""


def gguf_file(path: Path) -> bytes:
    """The header of a small GGUF file, and its one tensor."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("llama.block_count", 1)
    writer.add_float32("llama.rope.freq_base", 1e4)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["a", "b", "c"])
    writer.add_token_types([1, 1, 3])
    writer.add_tensor("token_embd.weight", np.zeros((3, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path.read_bytes()
