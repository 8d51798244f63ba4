"""Hostile artifacts: files that would run code, write or read elsewhere, claim more than they hold or never end, and what opens each of them."""

import gzip
import io
import json
import os
import struct
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from tunesmith.base import DataError
from tunesmith.base.artifact import commit
from tunesmith.base.files import digest, write_json
from tunesmith.data.sources import open_source
from tunesmith.data.template import Template
from tunesmith.methods.adapters.lora import LoRA
from tunesmith.methods.merging.peft_file import read_corrections
from tunesmith.models.load import load, load_tokenizer
from tunesmith.stages.recipe import read_recipe

Open = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    """One hostile artifact."""

    name: str
    prepare: Callable[[Path], object]
    """Makes it, in a folder that holds a sound small model as `model`."""
    open: Open
    """Opens it as tunesmith does."""
    harmless: bool = False
    """Whether it may be opened, since nothing hostile in it is looked at."""


def payload(canary: Path) -> bytes:
    """A pickle that makes a file when it is read."""
    return b"cposix\nsystem\n(S'touch " + str(canary).encode() + b"'\ntR."


def model(folder: Path) -> object:
    return load(str(folder / "model"), "fp32")


def rows(name: str) -> Open:
    """Every row of a file; a file without a row that could be used is one that prepare refuses."""

    def read(folder: Path) -> object:
        found = list(open_source(str(folder / name)))
        if not any(record.value for record in found):
            raise DataError(f"{folder / name}: no usable row: {found[0].defect if found else 'empty'}")
        return found

    return read


def recipe(folder: Path) -> object:
    return read_recipe(folder / "recipe.yaml")


def gguf(folder: Path) -> object:
    os.environ["TUNESMITH_CACHE"] = str(folder / "cache")
    return load_tokenizer(str(folder / "model.gguf"))


def adapter(folder: Path) -> object:
    loaded = load(str(folder / "model"), "fp32")
    LoRA(rank=4).restore(loaded, folder / "adapter")
    return loaded


def put(name: str, content: str | bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def pickled(name: str, *absent: str) -> Callable[[Path], object]:
    """A pickle under a name, in place of files that are taken away."""

    def make(folder: Path) -> None:
        for one in absent:
            (folder / one).unlink()
        content = payload(folder.parent / "canary")
        (folder / name).write_bytes(gzip.compress(content) if name.endswith(".gz") else content)

    return make


def torch_saved(folder: Path) -> None:
    torch.save({"a": torch.zeros(2)}, folder / "model" / "model.safetensors")


def changed(name: str, **fields: Any) -> Callable[[Path], object]:
    """A JSON file of the model with other fields."""

    def make(folder: Path) -> None:
        path = folder / "model" / name
        path.write_text(json.dumps({**(json.loads(path.read_text()) if path.exists() else {}), **fields}))
        (folder / "model" / "evil.py").write_text(f"open({str(folder.parent / 'canary')!r}, 'w')")

    return make


def tensors(harm: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    """The model's weights with something done to them."""

    def make(folder: Path) -> None:
        path = folder / "model" / "model.safetensors"
        found = load_file(path)
        harm(found)
        save_file(found, path, {"format": "pt"})

    return make


def indexed(name: str) -> Callable[[Path], object]:
    """Weights that lie elsewhere."""

    def make(folder: Path) -> None:
        path = folder / "model" / "model.safetensors"
        names = list(load_file(path))
        path.rename(folder / "elsewhere.safetensors")
        place = name.format(folder)
        write_json(path.with_name(f"{path.name}.index.json"), {"weight_map": dict.fromkeys(names, place)})

    return make


def header(length: int, text: bytes) -> bytes:
    """A safetensors file with a header that says it is so long."""
    return struct.pack("<Q", length) + text


def tensor_at(first: int, last: int) -> bytes:
    return json.dumps({"a": {"dtype": "F32", "shape": [4], "data_offsets": [first, last]}}).encode()


def text(value: bytes) -> bytes:
    return struct.pack("<Q", len(value)) + value


def key(name: str, value: int | bytes) -> bytes:
    written = struct.pack("<II", 4, value) if isinstance(value, int) else struct.pack("<I", 8) + text(value)
    return text(name.encode()) + written


def gguf_file(kv: int, tensors: int, *parts: bytes, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, kv) + b"".join(parts)


LLAMA = key("general.architecture", b"llama")


def archive(kind: str, name: str) -> Callable[[Path], object]:
    """A zip or tar with a member of that name."""

    def make(folder: Path) -> None:
        if kind == "zip":
            with zipfile.ZipFile(folder / "rows.zip", "w") as file:
                file.writestr(name, "x")
            return
        made = io.BytesIO()
        with tarfile.open(fileobj=made, mode="w") as tar:
            member = tarfile.TarInfo(name)
            if kind == "link":
                member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
            tar.addfile(member)
        (folder / "rows.jsonl.gz").write_bytes(gzip.compress(made.getvalue()))

    return make


def bomb(name: str, piece: bytes, count: int) -> Callable[[Path], object]:
    def make(folder: Path) -> None:
        with gzip.open(folder / name, "wb", compresslevel=6) as file:
            for _ in range(count):
                file.write(piece)

    return make


def saved_data(entry: str) -> Callable[[Path], object]:
    """A folder of `datasets` that names a file elsewhere."""

    def make(folder: Path) -> None:
        (folder / "secret.arrow").write_bytes(b"secret")
        (folder / "data").mkdir()
        write_json(folder / "data" / "state.json", {"_data_files": [{"filename": entry.format(folder)}]})

    return make


def run_folder(harm: Callable[[Path], object]) -> Callable[[Path], object]:
    """A run with a sealed artifact, and something done to it."""

    def make(folder: Path) -> None:
        work = folder / "run" / "deploy-0.partial"
        work.mkdir(parents=True)
        (work / "a.txt").write_text("a")
        facts = {"stage": "deploy", "version": 1, "spec": {}, "context": {}, "inputs": [], "parents": [], "metrics": {}}
        commit(work, folder / "run" / "deploy-0", facts)
        write_json(folder / "run" / "stages.json", {"deploy": {"state": "done", "artifact": "deploy-0"}})
        harm(folder / "run")

    return make


def manifest_names(name: str) -> Callable[[Path], object]:
    def harm(run: Path) -> None:
        (run / "secret").write_text("a")
        path = run / "deploy-0" / "manifest.json"
        found = json.loads(path.read_text())
        del found["seal"]
        found["files"][name.format(run)] = next(iter(found["files"].values()))
        write_json(path, {**found, "seal": digest(found)})

    return harm


def linked(run: Path) -> None:
    (run / "deploy-0" / "a.txt").rename(run / "a.txt")
    (run / "deploy-0" / "a.txt").symlink_to(run / "a.txt")


def stages(name: str) -> Callable[[Path], object]:
    return lambda run: write_json(
        run / "stages.json", {"deploy": {"state": "done", "artifact": name.format(run.parent)}}
    )


def deployed(folder: Path) -> object:
    return load_tokenizer(str(folder / "run"))


def learnt(harm: Callable[[dict[str, torch.Tensor]], object] = lambda found: None, **config: Any) -> Callable[[Path], object]:  # fmt: skip
    """An adapter of the model with something done to its tensors or its configuration."""

    def make(folder: Path) -> None:
        loaded = load(str(folder / "model"), "fp32")
        LoRA(rank=4).attach(loaded, 0)
        LoRA(rank=4).save(loaded, folder / "adapter")
        path = folder / "adapter" / "adapter_model.safetensors"
        found = load_file(path)
        harm(found)
        save_file(found, path)
        about = folder / "adapter" / "adapter_config.json"
        write_json(about, {**json.loads(about.read_text()), **config})

    return make


def first(value: float) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda found: next(iter(found.values())).view(-1)[:1].fill_(value)


def every(part: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[dict[str, torch.Tensor]], object]:
    return lambda found: found.update({name: part(one).contiguous() for name, one in found.items()})


def corrections(folder: Path) -> object:
    return read_corrections(folder / "adapter")


def template(source: str) -> Open:
    talk = [{"role": "user", "content": "a"}]
    return lambda folder: Template(source.format(canary=folder.parent / "canary"))([{"messages": talk}], "model")


def nothing(folder: Path) -> None:
    pass


EVIL = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model", "AutoTokenizer": ["evil.Tokenizer", None]}
LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
WEIGHTS = "model/model.safetensors"

CASES = [
    *(
        Case(f"pickle as {name}", pickled(f"model/{name}"), model)
        for name in (
            "model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "prompt.safetensors",
            "memory.safetensors", "adapter_config.json", "model.safetensors.index.json",
        )
    ),  # fmt: skip
    Case("pickle as the only weights", pickled("model/pytorch_model.bin", WEIGHTS), model),
    Case("torch.save as safetensors", torch_saved, model),
    *(
        Case(f"pickle beside weights: {name}", pickled(f"model/{name}"), model, harmless=True)
        for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth")
    ),
    *(
        Case(f"pickle as {name}", pickled(name), rows(name))
        for name in ("rows.jsonl", "rows.json", "rows.csv", "rows.parquet", "rows.arrow", "rows.jsonl.gz", "rows.pkl")
    ),
    Case("pickle as a recipe", pickled("recipe.yaml"), recipe),
    Case("pickle as GGUF", pickled("model.gguf"), gguf),
    Case("pickle as a manifest", run_folder(lambda run: pickled("manifest.json")(run / "deploy-0")), deployed),
    Case("pickle as an adapter", lambda folder: (learnt()(folder), pickled("adapter/adapter_model.safetensors")(folder)), adapter),
    Case("auto_map of the model", changed("config.json", auto_map=EVIL), model),
    Case("auto_map of the tokenizer", changed("tokenizer_config.json", auto_map=EVIL), model),
    Case("auto_map further down", changed("config.json", text_config={"auto_map": EVIL}), model),
    Case("code beside weights", changed("config.json"), model, harmless=True),
    Case("unknown architecture", changed("config.json", model_type="evil"), model),
    Case("architecture with a newline", changed("config.json", model_type="llama\nimport os"), model),
    Case("architecture with a path", changed("config.json", model_type="../../evil"), model),
    Case("kernel of the hub", changed("config.json", _attn_implementation="evil/kernel"), model),
    Case("quantiser of its own", changed("config.json", quantization_config={"quant_method": "evil"}), model),
    Case("generation of its own", changed("generation_config.json", cache_implementation="evil"), model),
    Case("tokenizer class that is a function", changed("tokenizer_config.json", tokenizer_class="pipeline"), model),
    Case("tokenizer class that is a model", changed("tokenizer_config.json", tokenizer_class="AutoModelForCausalLM"), model),
    Case("adapter_config redirects the base", changed("adapter_config.json", base_model_name_or_path="/elsewhere"), model),
    Case("a thousand million layers", changed("config.json", num_hidden_layers=10**9), model),
    Case("fewer layers than none", changed("config.json", num_hidden_layers=-1), model),
    Case("fewer layers than weights", changed("config.json", num_hidden_layers=1), model),
    Case("width beyond memory", changed("config.json", hidden_size=10**9), model),
    Case("vocabulary beyond memory", changed("config.json", vocab_size=10**12), model),
    Case("inner width beyond memory", changed("config.json", intermediate_size=10**12), model),
    Case("no heads", changed("config.json", num_attention_heads=0), model),
    Case("deep config", put("model/config.json", "[" * 200_000), model),
    Case("deep tokenizer", put("model/tokenizer.json", '{"a":' * 200_000), model),
    Case("a weight is missing", tensors(lambda found: found.pop("model.layers.1.mlp.down_proj.weight")), model),
    Case("a weight has another shape", tensors(lambda found: found.update({"model.norm.weight": torch.ones(3)})), model),
    Case("weights in the folder above", indexed("../elsewhere.safetensors"), model),
    Case("weights at an absolute path", indexed("{}/elsewhere.safetensors"), model),
    Case("weights at an encoded path", indexed("%2e%2e%2felsewhere.safetensors"), model),
    Case("safetensors header of 2^63", put(WEIGHTS, header(2**63 - 1, b"{}")), model),
    Case("safetensors header of 200 MB", put(WEIGHTS, header(200_000_000, b"{" + b" " * 200_000_000)), model),
    Case("safetensors header beyond the file", put(WEIGHTS, header(4096, b"{}")), model),
    Case("safetensors header that is no JSON", put(WEIGHTS, header(4, b"nope")), model),
    Case("safetensors header too deep", put(WEIGHTS, header(100_000, b"[" * 100_000)), model),
    Case("safetensors tensor beyond the file", put(WEIGHTS, header(len(tensor_at(0, 16)), tensor_at(0, 16))), model),
    Case("safetensors tensor that ends first", put(WEIGHTS, header(len(tensor_at(16, 0)), tensor_at(16, 0) + bytes(16))), model),
    Case("GGUF of 2^63 fields", put("model.gguf", gguf_file(2**63 - 1, 0, LLAMA)), gguf),
    Case("GGUF of 2^63 tensors", put("model.gguf", gguf_file(1, 2**63 - 1, LLAMA)), gguf),
    Case("GGUF text of 2^62 bytes", put("model.gguf", gguf_file(1, 0, struct.pack("<Q", 2**62), b"x")), gguf),
    Case("GGUF list of 2^62", put("model.gguf", gguf_file(1, 0, text(b"a"), struct.pack("<IIQ", 9, 4, 2**62))), gguf),
    Case("GGUF lists in lists", put("model.gguf", gguf_file(1, 0, text(b"a"), struct.pack("<I", 9), struct.pack("<IQ", 9, 1) * 5000)), gguf),
    Case("GGUF of a thousand million layers", put("model.gguf", gguf_file(2, 0, LLAMA, key("llama.block_count", 10**9))), gguf),
    Case("GGUF of width beyond memory", put("model.gguf", gguf_file(2, 0, LLAMA, key("llama.embedding_length", 4 * 10**9))), gguf),
    Case("GGUF tensor of 2^80 numbers", put("model.gguf", gguf_file(1, 1, LLAMA, text(b"t"), struct.pack("<IQQIQ", 2, 2**40, 2**40, 0, 0))), gguf),
    Case("GGUF tensor beyond the file", put("model.gguf", gguf_file(1, 1, LLAMA, text(b"t"), struct.pack("<IQQIQ", 2, 32, 32, 0, 2**62))), gguf),
    Case("GGUF of unknown architecture", put("model.gguf", gguf_file(1, 0, key("general.architecture", b"../evil"))), gguf),
    Case("YAML object", put("recipe.yaml", "model: !!python/object/apply:os.system ['touch canary']"), recipe),
    Case("YAML name", put("recipe.yaml", "model: !!python/name:os.system"), recipe),
    Case("YAML bomb", put("recipe.yaml", LAUGHS), recipe),
    Case("YAML bomb of merges", put("recipe.yaml", LAUGHS.replace("[x, x]", "{x: 1}").replace(": &", ": &").replace("a11: &a11 [", "<<: [")), recipe),
    Case("YAML within itself", put("recipe.yaml", "a: &a [*a]"), recipe),
    Case("YAML too deep", put("recipe.yaml", "[" * 50_000), recipe),
    Case("YAML number without end", put("recipe.yaml", "seed: " + "9" * 100_000), recipe),
    Case("YAML too long", put("recipe.yaml", "a: 1\n" * 100_000), recipe),
    Case("YAML date that is none", put("recipe.yaml", "seed: 2026-99-99"), recipe),
    Case("recipe that extends itself", put("recipe.yaml", "extends: recipe.yaml"), recipe),
    Case("zip with ../", archive("zip", "../canary"), rows("rows.zip")),
    Case("zip with an absolute path", archive("zip", "/tmp/canary"), rows("rows.zip")),
    Case("tar with ../", archive("tar", "../canary"), rows("rows.jsonl.gz")),
    Case("tar with a link", archive("link", "rows.jsonl"), rows("rows.jsonl.gz")),
    Case("gzip bomb of one line", bomb("rows.jsonl.gz", bytes(1 << 24), 8), rows("rows.jsonl.gz")),
    Case("gzip bomb of one value", bomb("rows.json.gz", b" " * (1 << 24), 8), rows("rows.json.gz")),
    Case("gzip bomb of many lines", bomb("rows.csv.gz", b"a\n" * (1 << 23), 8), rows("rows.csv.gz")),
    Case("data set at ../", saved_data("../secret.arrow"), rows("data")),
    Case("data set at an absolute path", saved_data("{}/secret.arrow"), rows("data")),
    Case("artifact with a file at ../", run_folder(manifest_names("../secret")), deployed),
    Case("artifact with a file at an absolute path", run_folder(manifest_names("{}/secret")), deployed),
    Case("artifact with a file at an encoded path", run_folder(manifest_names("%2e%2e/secret")), deployed),
    Case("artifact with a link", run_folder(linked), deployed),
    Case("artifact with a file besides", run_folder(lambda run: (run / "deploy-0" / "head.safetensors").write_bytes(b"")), deployed),
    Case("artifact of another key", run_folder(nothing), deployed),
    Case("run that points elsewhere", run_folder(stages("../elsewhere")), deployed),
    Case("run that points to an absolute path", run_folder(stages("{}/elsewhere")), deployed),
    Case("run whose stages are too deep", run_folder(lambda run: (run / "stages.json").write_text("[" * 200_000)), deployed),
    Case("adapter with NaN", learnt(first(float("nan"))), adapter),
    Case("adapter with infinity", learnt(first(float("inf"))), adapter),
    Case("adapter with 1e30", learnt(first(1e30)), adapter),
    Case("adapter with 1e30, to be merged", learnt(first(1e30)), corrections),
    Case("adapter of another rank", learnt(every(lambda one: one.repeat(*(2 if size == 4 else 1 for size in one.shape)))), adapter),
    Case("adapter of another base", learnt(every(lambda one: one.repeat(*(3 if size != 4 else 1 for size in one.shape)))), adapter),
    Case("adapter that lacks a tensor", learnt(lambda found: found.pop(next(iter(found)))), adapter),
    Case("adapter of another scale", learnt(lora_alpha=4000), adapter),
    Case("adapter whose rank is not its tensors'", learnt(r=1), corrections),
    Case("adapter with an overlong header", lambda folder: (learnt()(folder), put("adapter/adapter_model.safetensors", header(2**62, b"{}"))(folder)), adapter),
    *(
        Case(f"template: {name}", nothing, template(source))
        for name, source in {
            "loops without end": "{{% for a in range(99999) %}}{{% for b in range(99999) %}}{{% endfor %}}{{% endfor %}}",
            "power tower": "{{{{ 7 ** 7 ** 9 ** 2 }}}}",
            "text without end": "{{% set n = namespace(x='a') %}}{{% for i in range(60) %}}{{% set n.x = n.x ~ n.x %}}{{% endfor %}}",
            "ten thousand million letters": "{{{{ 'a' * 10 ** 10 }}}}",
            "padding": "{{{{ 'a' | center(10 ** 10) }}}}",
            "macro of itself": "{{% macro f() %}}{{{{ f() }}}}{{% endmacro %}}{{{{ f() }}}}",
            "subclasses": "{{{{ ''.__class__.__mro__[1].__subclasses__() }}}}",
            "globals": "{{{{ cycler.__init__.__globals__.os.system('touch {canary}') }}}}",
            "lipsum": "{{{{ lipsum.__globals__['os'].popen('touch {canary}').read() }}}}",
            "attr filter": "{{{{ ''|attr('__class__')|attr('__base__')|attr('__subclasses__')() }}}}",
            "format": "{{{{ '{{0.__class__.__init__.__globals__}}'.format(cycler) }}}}",
            "include": "{{% include '/etc/passwd' %}}",
            "import": "{{% from 'os' import system %}}",
            "change what is given": "{{{{ messages.append(1) }}}}",
            "braces without end": "{{{{ " + "(" * 50_000,
        }.items()
    ),
]  # fmt: skip
