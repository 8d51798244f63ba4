"""QLoRA: a base in four bits learns as the model whose plain weights those bits stand for, whatever was done with it in between."""

import copy
import importlib.util
from contextlib import nullcontext

import pytest
import torch
from torch.nn.functional import cosine_similarity

from tunesmith.data.batch import Batch
from tunesmith.kernels import native
from tunesmith.kernels.int8_linear import Int8Linear
from tunesmith.kernels.nf4_linear import NF4Linear
from tunesmith.methods.adapters import trainable
from tunesmith.methods.adapters.dora import DoRA
from tunesmith.methods.adapters.ia3 import IA3
from tunesmith.methods.adapters.lora import LoRA
from tunesmith.methods.adapters.memory import Memory
from tunesmith.methods.adapters.prefix import Prefix
from tunesmith.methods.adapters.prompt import Prompt
from tunesmith.methods.objectives.sft import SFT
from tunesmith.models.attention import plain
from tunesmith.models.forward import generic_logps, token_logps
from tunesmith.models.generate import Sampling, generate
from tunesmith.models.quantize import quantise, round_to

WIDTHS = {"vocab_size": 97, "hidden_size": 64, "intermediate_size": 128, "head_dim": 16}
ADAPTERS = {
    "lora": LoRA(rank=4),
    "lora-dropout": LoRA(rank=4, dropout=0.3),
    "pissa": LoRA(rank=4, start="principal"),
    "rslora": LoRA(rank=4, scaling="root"),
    "dora": DoRA(rank=4),
    "dora-dropout": DoRA(rank=4, dropout=0.3),
    "ia3": IA3(),
    "prompt": Prompt(tokens=3),
    "prefix": Prefix(tokens=3),
    "memory": Memory(experts=8),
}


@pytest.fixture
def pair(build):
    """One random model twice: in few bits, and with the plain weights that these stand for; each with the same adapter."""

    def make(adapter, kind="llama", dtype=torch.float32, bits="nf4"):
        four = build(kind, seed=3, spread=0.15, dtype=dtype, **WIDTHS)
        wide = copy.copy(four)
        wide.model = copy.deepcopy(four.model)
        quantise(four.model, bits, dtype)
        round_to(wide.model, bits)
        generator = torch.Generator().manual_seed(5)
        for loaded in (four, wide):
            adapter.attach(loaded, 1)
        moves = [torch.randn(one.shape, generator=generator) / 20 for one in trainable(four.model).values()]
        for loaded in (four, wide):
            for parameter, move in zip(trainable(loaded.model).values(), moves, strict=True):
                parameter.data += move
        return four, wide

    return make


def gradients(loaded, batch):
    loaded.model.zero_grad()
    loaded.model.train()
    torch.manual_seed(7)  # what dropout draws
    loss = SFT()(loaded, batch).total
    loss.backward()
    return {name: one.grad for name, one in trainable(loaded.model).items()} | {"loss": loss.detach()}


def look(loaded, batch):
    """What happens to a model between steps."""
    loaded.model.eval()
    with torch.no_grad():
        token_logps(loaded, batch)
        generic_logps(loaded, batch)
    generate(loaded, [[5, 6, 7]], Sampling(max_tokens=3))


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "generic"])
@pytest.mark.parametrize("name", ADAPTERS)
def test_gradients_are_those_of_the_plain_model_also_after_a_look_at_it(name, fused, pair, random_rows):
    four, wide = pair(ADAPTERS[name])
    four.fuse = wide.fuse = fused
    batch = Batch.of(random_rows(4))
    expected = gradients(wide, batch)
    for looks in range(2):
        found = gradients(four, batch)
        assert found.keys() == expected.keys()
        for each, gradient in expected.items():
            assert float((found[each] - gradient).norm()) <= 1e-6 * float(gradient.norm()), (each, looks)
        look(four, batch)


def alike(four, wide, batch):
    """Cosine of all gradients and the loss."""
    look(four, batch)
    found, expected = gradients(four, batch), gradients(wide, batch)
    every = [torch.cat([one[name].flatten().double() for name in expected]) for one in (found, expected)]
    return float(cosine_similarity(*every, 0))


@pytest.mark.parametrize("kind", ["llama", "olmo2"])
def test_in_bf16_they_are_nearly_those(kind, pair, random_rows):
    assert alike(*pair(LoRA(rank=4), kind, torch.bfloat16), Batch.of(random_rows(4))) > 0.999


@pytest.mark.parametrize("fused", [True, False], ids=["fused", "generic"])
@pytest.mark.parametrize("name", ADAPTERS)
def test_in_int8_too(name, fused, pair, random_rows):
    """Whose inputs are rounded as well."""
    four, wide = pair(ADAPTERS[name], bits="int8")
    four.fuse = wide.fuse = fused
    assert alike(four, wide, Batch.of(random_rows(4))) > 0.99


@pytest.mark.parametrize("kind", ["llama", "qwen2", "phi3", "gemma3_text"])
@pytest.mark.skipif(native.level() is None, reason="no compiled operations on this machine")
def test_fused_is_generic(kind, pair, random_rows):
    four, _ = pair(LoRA(rank=4), kind)
    batch, found = Batch.of(random_rows(3, answers=2)), []
    for four.fuse in (True, False):
        found.append(gradients(four, batch))
    for name, gradient in found[1].items():
        assert float((found[0][name] - gradient).norm()) <= 1e-4 * float(gradient.norm()) + 1e-6, name


@pytest.mark.parametrize(("kind", "layers"), [("nf4", NF4Linear), ("int8", Int8Linear)])
def test_embeddings_head_and_norms_keep_every_bit(build, kind, layers):
    loaded = build("llama", **WIDTHS)
    before = {name: weight.clone() for name, weight in loaded.model.named_parameters()}
    quantise(loaded.model, kind, torch.float32)
    four = {f"{name}.weight" for name, layer in loaded.model.named_modules() if isinstance(layer, layers)}
    assert len(four) == 14
    rest = {name: weight for name, weight in loaded.model.named_parameters() if name not in four}
    assert {name.rsplit(".", 2)[-2] for name in rest} >= {"embed_tokens", "lm_head", "norm", "input_layernorm"}
    assert all(torch.equal(weight, before[name]) for name, weight in rest.items())


def test_peft_and_bitsandbytes_compute_the_same(pair, tmp_path, build):
    """The bits of ours in their layer, the adapter's file in peft's; without their way of inference, after which gradients are wrong."""
    library = pytest.importorskip("bitsandbytes")
    peft = pytest.importorskip("peft")
    adapter = LoRA(rank=4)
    four, _ = pair(adapter)
    adapter.save(four, tmp_path)
    theirs = build("llama", seed=3, spread=0.15, **WIDTHS)
    for name, layer in list(theirs.model.named_modules()):
        if type(layer) is torch.nn.Linear and name != "lm_head":
            made = library.nn.Linear4bit(
                layer.in_features, layer.out_features, bias=False, compute_dtype=torch.float32, quant_type="nf4"
            )
            made.weight = library.nn.Params4bit(layer.weight.data, requires_grad=False, quant_type="nf4").to("cpu")
            made.support_avx512bf16_for_cpu = False
            mine = four.model.get_submodule(name).base.held
            assert torch.equal(made.weight.data, mine.codes_N)
            made.weight.quant_state.absmax = mine.fine_B  # on CPUs theirs is now and then the next to the nearest
            theirs.model.set_submodule(name, made)
    ids = torch.arange(3, 27).view(3, 8)
    model = peft.PeftModel.from_pretrained(theirs.model, tmp_path).eval()
    with torch.no_grad(), plain(theirs.model):
        expected = model(input_ids=ids).logits
    with torch.no_grad(), plain(four.model):
        found = four.model(input_ids=ids).logits
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("compiled", [True, False])
def test_the_benchmark_of_a_large_model_runs_in_a_tiny_shape(compiled, request):
    path = request.config.rootpath / "benchmarks" / "gpu.py"
    spec = importlib.util.spec_from_file_location("gpu", path)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    with nullcontext() if compiled else native.disabled():
        found = benchmark.qlora(tiny=True, rank=8, tokens=64)
    assert found["bytes_per_number_of_the_base"] == pytest.approx(0.516, abs=1e-3)
    assert found["losses"][1] < found["losses"][0]
    if not torch.cuda.is_available():
        assert "there is no GPU" in benchmark.qlora(tiny=False, rank=8, tokens=64)["qlora"]
