"""The hostile artifacts that are tried: each as it would come with a model, with rows, with a recipe or with a run."""

import struct

import torch
from hostile import (
    ABSOLUTE,
    LLAMA,
    Case,
    Rows,
    Talk,
    adapter,
    archive,
    bomb,
    changed,
    corrections,
    every,
    first,
    gguf,
    gguf_file,
    header,
    indexed,
    key,
    learnt,
    model,
    nothing,
    pickled,
    put,
    recipe,
    saved_data,
    tensor_at,
    tensors,
    text,
    torch_saved,
)
from hostile_runs import deployed, led_away, linked, logged, manifest_names, run_folder, stages, worked_in

EVIL = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model", "AutoTokenizer": ["evil.Tokenizer", None]}
LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
WEIGHTS = "model/model.safetensors"
TARGETS = {"a file": "precious", "what is not there": "absent", "what is not there, further off": "../canary"}

# fmt: off
CASES = [
    *(
        Case(f"pickle as {name}", pickled(f"model/{name}"), model)
        for name in (
            "model.safetensors", "config.json", "tokenizer.json", "tokenizer_config.json", "generation_config.json", "prompt.safetensors",
            "memory.safetensors", "adapter_config.json", "model.safetensors.index.json",
        )
    ),
    Case("pickle as the only weights", pickled("model/pytorch_model.bin", WEIGHTS), model),
    Case("torch.save as safetensors", torch_saved, model),
    *(
        Case(f"pickle beside weights: {name}", pickled(f"model/{name}"), model, harmless=True)
        for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth")
    ),
    *(
        Case(f"pickle as {name}", pickled(name), Rows(name))
        for name in ("rows.jsonl", "rows.json", "rows.parquet", "rows.arrow", "rows.jsonl.gz", "rows.pkl")
    ),
    Case("pickle as rows.csv", pickled("rows.csv"), Rows("rows.csv"), harmless=True),
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
    Case("zip with ../", archive("zip", "../canary"), Rows("rows.zip")),
    Case("zip with an absolute path", archive("zip", str(ABSOLUTE)), Rows("rows.zip")),
    Case("tar with ../", archive("tar", "../canary"), Rows("rows.jsonl.gz")),
    Case("tar with a link", archive("link", "rows.jsonl"), Rows("rows.jsonl.gz")),
    Case("gzip bomb of one line", bomb("rows.jsonl.gz", bytes(1 << 24), 8), Rows("rows.jsonl.gz")),
    Case("gzip bomb of one value", bomb("rows.json.gz", b" " * (1 << 24), 8), Rows("rows.json.gz")),
    Case("gzip bomb of many lines", bomb("rows.csv.gz", b"a\n" * (1 << 23), 8), Rows("rows.csv.gz")),
    Case("data set at ../", saved_data("../secret.arrow"), Rows("data")),
    Case("data set at an absolute path", saved_data("{}/secret.arrow"), Rows("data")),
    Case("artifact with a file at ../", run_folder(manifest_names("../secret")), deployed),
    Case("artifact with a file at an absolute path", run_folder(manifest_names("{}/secret")), deployed),
    Case("artifact with a file at an encoded path", run_folder(manifest_names("%2e%2e/secret")), deployed),
    Case("artifact with a link", run_folder(linked), deployed),
    Case("artifact with a file besides", run_folder(lambda run: (run / "deploy-0" / "head.safetensors").write_bytes(b"")), deployed),
    Case("artifact of another key", run_folder(nothing), deployed),
    Case("run that points elsewhere", run_folder(stages("../elsewhere")), deployed),
    Case("run that points to an absolute path", run_folder(stages("{}/elsewhere")), deployed),
    Case("run whose stages are too deep", run_folder(lambda run: (run / "stages.json").write_text("[" * 200_000)), deployed),
    *(
        Case(f"run whose {name} is a link to {what}", led_away(name, target), worked_in)
        for name in (".lock", "events.jsonl", "stages.json") for what, target in TARGETS.items()
    ),
    Case("run whose X.partial is a link to a folder", led_away("X.partial", "cellar"), worked_in),
    *(Case(f"requests.sqlite that is a link to {what}", led_away("requests.sqlite", target), logged) for what, target in TARGETS.items()),
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
        Case(f"template: {name}", nothing, Talk(source))
        for name, source in {
            "loops without end": "{{% for a in range(99999) %}}{{% for b in range(99999) %}}{{% endfor %}}{{% endfor %}}",
            "power tower": "{{{{ 10 ** (10 ** 9) }}}}",
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
]
# fmt: on
