"""Pruning: exact sparsity, Wanda's formula against a slow reference, and small models that are the large ones with parts silenced."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from tunesmith.base import ConfigError, ModelError
from tunesmith.base.proof import Proof
from tunesmith.base.spec import validate
from tunesmith.data.batch import Batch
from tunesmith.methods.pruning.base import linears, prunable_layers
from tunesmith.methods.pruning.channels import Channels
from tunesmith.methods.pruning.heads import Heads
from tunesmith.methods.pruning.layers import Layers, influence
from tunesmith.methods.pruning.magnitude import Magnitude
from tunesmith.methods.pruning.walk import visits
from tunesmith.methods.pruning.wanda import Wanda
from tunesmith.models.forward import padded_logps, token_logps
from tunesmith.models.load import load

SHAPED = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text")
"""Architectures whose parts structured methods know."""
STRUCTURED = (Heads(groups=1), Channels(share=0.4, multiple=4), Layers(count=1))


@pytest.fixture
def fresh(build):
    """The same random model each time, of three layers; norms and biases are random too."""

    def make(kind="llama", **fields):
        loaded = build(kind, seed=3, spread=0.3, vocab_size=97, num_hidden_layers=3, **fields)
        with torch.no_grad():
            for name, parameter in loaded.model.named_parameters():
                if "norm" in name:
                    parameter.normal_(1.0, 0.2)
        loaded.model.requires_grad_(False)
        return loaded

    return make


def weights(loaded):
    return {
        f"{number}.{name}": linear.weight.detach().clone()
        for number, layer in enumerate(prunable_layers(loaded.model))
        for name, linear in linears(layer)
    }


@torch.no_grad()
def logps(loaded, rows):
    return token_logps(loaded, Batch.of(rows))


def test_the_smallest_weights_of_each_matrix_or_row_go_and_no_others(fresh):
    for within, axis in (("matrix", None), ("row", 1)):
        loaded, before = fresh(), weights(fresh())
        Magnitude(sparsity=0.3, within=within).silence(loaded, [])
        for name, weight in weights(loaded).items():
            old = before[name]
            groups = old.reshape(1, -1) if axis is None else old
            count = round(0.3 * groups.shape[1])
            assert ((weight.view_as(groups) == 0).sum(1) == count).all()
            threshold = groups.abs().sort(1).values[:, count - 1 : count]
            assert torch.equal(weight.view_as(groups), torch.where(groups.abs() <= threshold, 0.0, groups))


def test_embeddings_norms_and_head_are_left_alone(fresh, random_rows):
    loaded, before = fresh(tie_word_embeddings=False), fresh(tie_word_embeddings=False).model.state_dict()
    Wanda(sparsity=0.9).silence(loaded, random_rows(4))
    changed = {name for name, tensor in loaded.model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert len(changed) == 3 * 7
    assert all(".layers." in name and name.endswith("_proj.weight") for name in changed)


def test_two_of_each_four_stay(fresh, random_rows):
    for method in (Magnitude(pattern="2:4"), Wanda(pattern="2:4"), Wanda(pattern="4:8")):
        loaded, before, width = fresh(), weights(fresh()), int(method.pattern[-1])
        method.silence(loaded, random_rows(4))
        for name, weight in weights(loaded).items():
            zero = (weight == 0).view(-1, width)
            assert (zero.sum(1) == width // 2).all()
            if method.kind == "magnitude":
                old = before[name].view(-1, width).abs()
                assert (old.masked_fill(~zero, 0).max(1).values <= old.masked_fill(zero, 9e9).min(1).values).all()


@torch.no_grad()
def slow_wanda(loaded, rows, sparsity):
    """Equation 1 of the paper over one row at a time, each layer after all before it are pruned, by transformers' own attention."""
    model = loaded.model
    model.set_attn_implementation("eager")
    for layer in model.model.layers:
        inputs = {}
        hooks = [
            linear.register_forward_hook(
                lambda module, given, _, name=name, inputs=inputs: inputs.setdefault(name, []).append(given[0][0])
            )
            for name, linear in linears(layer)
        ]
        for row in rows:
            model(input_ids=torch.from_numpy(row.sequences[0].tokens.astype(np.int64))[None])
        for hook in hooks:
            hook.remove()
        for name, linear in linears(layer):
            score = linear.weight.abs() * torch.cat(inputs[name]).norm(p=2, dim=0)
            for row, scores in zip(linear.weight, score, strict=True):
                row[scores.argsort()[: round(sparsity * len(scores))]] = 0


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "phi3"])
def test_wanda_is_the_papers_formula(kind, fresh, random_rows):
    rows = random_rows(11, answers=1)  # more than one pass, common prefixes, unequal lengths
    found, expected = fresh(kind), fresh(kind)
    Wanda(sparsity=0.5).silence(found, rows)
    slow_wanda(expected, rows, 0.5)
    left = weights(expected)
    for name, weight in weights(found).items():
        assert torch.equal(weight, left[name]), name


def test_wanda_keeps_more_of_the_function_than_magnitude(fresh, random_rows):
    """With inputs of very unequal size, which sizes of weights alone do not show."""
    rows, apart = random_rows(8), {}
    for method in (Wanda(), Magnitude(within="row")):
        loaded = fresh()
        for layer in loaded.model.model.layers:
            for norm in (layer.input_layernorm, layer.post_attention_layernorm):
                norm.weight.data *= torch.logspace(-1.5, 0.5, 16)
        before = logps(loaded, rows)
        method.silence(loaded, rows)
        apart[method.kind] = float((logps(loaded, rows) - before).square().mean())
    assert 0 < apart["wanda"] < 0.8 * apart["magnitude"]


@pytest.mark.parametrize("kind", SHAPED)
@pytest.mark.parametrize("method", STRUCTURED, ids=lambda method: method.kind)
def test_the_small_model_is_the_large_one_with_parts_silenced(method, kind, fresh, random_rows, tmp_path):
    loaded, rows = fresh(kind), random_rows(5)
    before, whole = logps(loaded, rows), sum(one.numel() for one in loaded.model.parameters())
    method.check(loaded.model.config)
    kept = method.silence(loaded, rows)
    silenced = logps(loaded, rows)
    assert (silenced - before).abs().max() > 1e-3
    small = method.shrunk(loaded.model, kept)
    assert sum(one.numel() for one in small.parameters()) < whole
    small.save_pretrained(tmp_path)
    loaded.tokenizer.save_pretrained(tmp_path)
    reopened = load(str(tmp_path), "fp32")
    assert reopened.decoder() is not None
    torch.testing.assert_close(logps(reopened, rows), silenced, atol=1e-5, rtol=1e-5)
    plain = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(plain) is type(loaded.model)
    assert plain.config.head_dim == 8
    with torch.no_grad():
        torch.testing.assert_close(padded_logps(reopened, Batch.of(rows)), silenced, atol=1e-5, rtol=1e-5)
    proof = Proof()
    method.prove(proof, reopened.model)
    assert proof.claims[0]["holds"]


def test_heads_go_with_the_query_heads_that_read_them(fresh, random_rows):
    loaded, rows = fresh(hidden_size=24, num_attention_heads=6, num_key_value_heads=3), random_rows(4)
    method, before = Heads(groups=2), weights(loaded)
    kept = method.silence(loaded, rows)
    small = method.shrunk(loaded.model, kept)
    assert (small.config.num_attention_heads, small.config.num_key_value_heads, small.config.head_dim) == (2, 1, 8)
    for number, layer in enumerate(small.model.layers):
        group = int(kept[number])
        assert torch.equal(
            layer.self_attn.q_proj.weight, before[f"{number}.self_attn.q_proj"][16 * group : 16 * group + 16]
        )
        assert torch.equal(
            layer.self_attn.v_proj.weight, before[f"{number}.self_attn.v_proj"][8 * group : 8 * group + 8]
        )
        assert torch.equal(
            layer.self_attn.o_proj.weight, before[f"{number}.self_attn.o_proj"][:, 16 * group : 16 * group + 16]
        )


def test_parts_that_write_nothing_go_first(fresh, random_rows):
    loaded, rows = fresh("qwen2"), random_rows(4)
    for number, layer in enumerate(loaded.model.model.layers):
        layer.self_attn.v_proj.weight.data[8 * (number % 2) :][:8] = 0
        layer.self_attn.v_proj.bias.data[8 * (number % 2) :][:8] = 0
        layer.mlp.up_proj.weight.data[number % 2 :: 2] = 0
    before = logps(loaded, rows)
    heads = Heads(groups=1).silence(loaded, rows)
    assert [kept.tolist() for kept in heads.values()] == [[1], [0], [1]]
    channels = Channels(share=0.5, multiple=1).silence(loaded, rows)
    odd, even = list(range(1, 32, 2)), list(range(0, 32, 2))
    assert [kept.tolist() for kept in channels.values()] == [odd, even, odd]
    torch.testing.assert_close(logps(loaded, rows), before, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def slow_influence(loaded, rows):
    """1 - cosine between what goes into and what comes out of each layer, one row at a time, by transformers' own attention."""
    model, seen = loaded.model, {}
    model.set_attn_implementation("eager")
    hooks = [
        layer.register_forward_hook(
            lambda _, given, out, number=number: seen.setdefault(number, []).append((given[0][0], out[0]))
        )
        for number, layer in enumerate(model.model.layers)
    ]
    for row in rows:
        model(input_ids=torch.from_numpy(row.sequences[0].tokens.astype(np.int64))[None])
    for hook in hooks:
        hook.remove()
    found = []
    for pairs in seen.values():
        inside, outside = (torch.cat(side) for side in zip(*pairs, strict=True))
        found.append(1 - float(((inside * outside).sum(1) / inside.norm(dim=1) / outside.norm(dim=1)).mean()))
    return found


def test_layers_go_by_block_influence(fresh, random_rows):
    rows = random_rows(11)
    with torch.no_grad():
        found = [float(influence(visit)) for visit in visits(fresh(), rows)]
    expected = slow_influence(fresh(), rows)
    assert found == pytest.approx(expected, abs=1e-6)
    assert len(set(found)) == 3
    order = sorted(range(3), key=expected.__getitem__)
    assert set(Layers(count=1).silence(fresh(), rows)) == set(order[1:])
    assert set(Layers(count=2).silence(fresh(), rows)) == {order[2]}


def test_kinds_of_the_layers_that_stay_go_with_them(fresh, random_rows):
    loaded = fresh("gemma2")
    assert loaded.model.config.layer_types == ["sliding_attention", "full_attention", "sliding_attention"]
    kinds = [loaded.model.config.layer_types[number] for number in (1, 2)]
    small = Layers(count=1).shrunk(loaded.model, {1: torch.empty(0), 2: torch.empty(0)})
    assert small.config.layer_types == kinds
    assert torch.equal(small.model.layers[0].mlp.up_proj.weight, loaded.model.model.layers[1].mlp.up_proj.weight)


def test_what_cannot_be_pruned_is_refused(fresh, build, random_rows):
    for method in STRUCTURED:
        for kind in ("gpt_neox", "phi3", "mixtral"):
            with pytest.raises(
                ModelError, match=rf"cannot cut parts out of a {kind}, only of llama, .*take prune.method.kind=wanda"
            ):
                method.check(fresh(kind).model.config)
    config = fresh().model.config
    with pytest.raises(ModelError, match=r"groups 2: the model has 2 key-value heads; leave at least one"):
        Heads(groups=2).check(config)
    with pytest.raises(ModelError, match=r"count 3: the model has 3 layers; leave at least one"):
        Layers(count=3).check(config)
    with pytest.raises(ModelError, match=r"of 32 channels 32 would stay, in multiples of 16; change share or multiple"):
        Channels(share=0.1).check(config)
    odd = fresh(hidden_size=32, num_attention_heads=8, num_key_value_heads=4).model.config
    with pytest.raises(
        ModelError, match=r"transformers takes no llama of that shape: .*multiple of the number of attention heads"
    ):
        Heads(groups=1).check(odd)
    narrow = fresh(hidden_size=6, num_attention_heads=1, num_key_value_heads=1).model.config
    for sparse in (Magnitude, Wanda):
        with pytest.raises(ModelError, match=r"rows of 6 weights, no multiple of 4; take pattern: free"):
            sparse(pattern="2:4").check(narrow)
        sparse().check(narrow)
        sparse(pattern="4:8").check(config)
        with pytest.raises(ModelError, match=r"GPT2LMHeadModel has no decoder layers with nn.Linear inside"):
            sparse().check(build("gpt2", vocab_size=97, n_embd=16, n_head=4, n_layer=2).model.config)
    lost = fresh()
    lost.forest = False
    with pytest.raises(
        ModelError, match=r"cannot be run one by one on training rows; take prune.method.kind=magnitude"
    ):
        Wanda().silence(lost, random_rows(2))
    with pytest.raises(ConfigError, match=r"pattern 2:4 is half zeros: leave sparsity out"):
        validate(Wanda, {"pattern": "2:4", "sparsity": 0.7}, "r.yaml")


def test_the_proof_sees_a_zero_that_is_not_there(fresh):
    loaded, method = fresh(), Magnitude(sparsity=0.25, within="row")
    method.silence(loaded, [])
    proof = Proof()
    method.prove(proof, loaded.model)
    sizes = [weight.shape for weight in weights(loaded).values()]
    asked = sum(rows * round(0.25 * columns) for rows, columns in sizes)
    assert proof.claims[0] == {
        "claim": "the zeros asked for are there", "holds": True, "asked": asked, "zeros": asked,
        "groups": sum(rows for rows, _ in sizes), "short": 0,
    }  # fmt: skip
    weight = loaded.model.model.layers[1].mlp.up_proj.weight
    weight.data[0, int((weight[0] == 0).nonzero()[0])] = 1e-30
    method.prove(proof, loaded.model)
    assert (proof.claims[1]["holds"], proof.claims[1]["short"]) == (False, 1)
    assert {name: int(zero.sum()) for name, zero in method.zeros(loaded.model).items()}[
        "model.layers.1.mlp.up_proj.weight"
    ] == 32 * 4 - 1
