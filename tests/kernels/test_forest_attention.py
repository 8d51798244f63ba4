from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tunesmith.data.batch import grow
from tunesmith.kernels.flex import flex_attention, walk
from tunesmith.kernels.forest_attention import Shape, forest_attention, reference

words = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=10), min_size=1, max_size=5)


def inputs(count, heads, groups, width=4, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((heads, count, width), (groups, count, width), (groups, count, width))
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_() for shape in shapes]


def one_by_one(query, key, value, forest, shape):
    """Each sequence alone by torch's own attention: a third way, which knows nothing of forests."""
    out = torch.zeros_like(query)
    group = query.shape[0] // key.shape[0]
    for number in range(len(forest.segments)):
        nodes = forest.nodes(number)
        length = len(nodes)
        seen = torch.ones(length, length, dtype=torch.bool).tril()
        if shape.window is not None:
            seen = seen.triu(1 - shape.window)
        score = query[:, nodes] @ key[:, nodes].repeat_interleave(group, 0).mT * shape.scale
        if shape.softcap is not None:
            score = shape.softcap * torch.tanh(score / shape.softcap)
        weight = score.masked_fill(~seen, float("-inf")).softmax(-1)
        out = out.index_copy(1, nodes, weight @ value[:, nodes].repeat_interleave(group, 0))
    return out


@settings(max_examples=40)
@given(
    words,
    st.sampled_from([(4, 4), (4, 2), (4, 1)]),
    st.sampled_from([None, 1, 3]),
    st.sampled_from([None, 2.0]),
)
def test_values_and_gradients_are_those_of_the_sequences_alone(drawn, heads, window, softcap):
    forest = grow([np.array(sequence) for sequence in drawn])
    shape = Shape(0.5, window, softcap)
    count = len(forest.tokens_N)
    upstream = torch.randn(heads[0], count, 4, generator=torch.Generator().manual_seed(1))
    found = {}
    for name, attend in (
        ("fast", lambda q, k, v: forest_attention(q, k, v, forest.segments, shape)),
        ("reference", lambda q, k, v: reference(q, k, v, forest.segments, shape)),
        ("alone", lambda q, k, v: one_by_one(q, k, v, forest, shape)),
    ):
        tensors = inputs(count, *heads)
        out = attend(*tensors)
        out.backward(upstream)
        found[name] = [out.detach(), *(tensor.grad for tensor in tensors)]
    for name in ("fast", "reference"):
        for one, other in zip(found[name], found["alone"], strict=True):
            torch.testing.assert_close(one, other, atol=2e-6, rtol=1e-5)


def paths_of_some_length():
    """Beginnings shared at lengths that no tile of queries or keys divides."""
    draw = np.random.default_rng(0)
    start, more, rest, long = (draw.integers(0, 50, size) for size in (71, 30, 49, 201))
    return grow(
        [np.concatenate([start, more]), np.concatenate([start, more, rest]), np.concatenate([start[:5], rest]), long]
    )


@pytest.mark.parametrize("width", [5, 16, 64, 72])
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (50, None), (100, 3.0)])
def test_tiles_join_without_a_seam(width, window, softcap):
    forest, shape = paths_of_some_length(), Shape(width**-0.5, window, softcap)
    found = {}
    for attend in (forest_attention, reference):
        tensors = inputs(len(forest.tokens_N), 6, 2, width)
        out = attend(*tensors, forest.segments, shape)
        (out * torch.linspace(-1, 1, out.numel()).view(out.shape)).sum().backward()
        found[attend] = [out.detach(), *(tensor.grad for tensor in tensors)]
    for one, other in zip(*found.values(), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_in_bf16_tiles_are_nearer_to_fp32_than_plain_operations():
    forest, shape = paths_of_some_length(), Shape(0.125)
    truth = inputs(len(forest.tokens_N), 6, 2, 64)
    reference(*truth, forest.segments, shape).square().sum().backward()
    errors = []
    for attend in (forest_attention, reference):
        half = [tensor.detach().bfloat16().requires_grad_() for tensor in truth]
        attend(*half, forest.segments, shape).float().square().sum().backward()
        errors.append(
            [float((a.grad.float() - b.grad).norm() / b.grad.norm()) for a, b in zip(half, truth, strict=True)]
        )
    for fast, slow in zip(*errors, strict=True):
        assert fast <= 1.05 * slow


def test_a_node_sees_nothing_that_comes_after_it():
    """Not even a number that is none: what is hidden has weight zero, not a small one."""
    forest = grow([np.arange(90)])
    query, key, value = (tensor.detach() for tensor in inputs(90, 2, 1))
    before = forest_attention(query, key, value, forest.segments, Shape(0.5))
    key[:, 40:], value[:, 40:] = 1e4, 1e4
    assert torch.equal(forest_attention(query, key, value, forest.segments, Shape(0.5))[:, :40], before[:, :40])


def test_without_gradients_nothing_is_kept():
    forest = grow([np.arange(5), np.arange(3)])
    query, key, value = inputs(5, 2, 1)
    with torch.no_grad():
        out = forest_attention(query, key, value, forest.segments, Shape(0.5))
    assert not out.requires_grad
    torch.testing.assert_close(out, reference(query, key, value, forest.segments, Shape(0.5)))


@pytest.mark.parametrize("learns", [0, 1, 2])
def test_gradients_where_only_one_input_learns(learns):
    forest = grow([np.array([1, 2, 3]), np.array([1, 2, 4, 5])])
    tensors = inputs(5, 4, 2)
    for number, tensor in enumerate(tensors):
        tensor.requires_grad_(number == learns)
    forest_attention(*tensors, forest.segments, Shape(0.5)).square().sum().backward()
    found = tensors[learns].grad.clone()
    tensors[learns].grad = None
    reference(*tensors, forest.segments, Shape(0.5)).square().sum().backward()
    torch.testing.assert_close(found, tensors[learns].grad)


def test_bf16_follows_fp32():
    forest = grow([np.arange(12), np.concatenate([np.arange(6), np.arange(20, 30)])])
    single = inputs(len(forest.tokens_N), 4, 2)
    half = [tensor.detach().bfloat16().requires_grad_() for tensor in single]
    outs = [forest_attention(*tensors, forest.segments, Shape(0.5)) for tensors in (single, half)]
    for out in outs:
        out.float().square().sum().backward()
    assert outs[1].dtype == half[0].grad.dtype == torch.bfloat16
    torch.testing.assert_close(outs[1].float(), outs[0], atol=3e-2, rtol=3e-2)
    for one, other in zip(half, single, strict=True):
        assert torch.cosine_similarity(one.grad.float().flatten(), other.grad.flatten(), 0) > 0.999


def test_a_window_that_sees_all_is_no_window():
    forest = grow([np.arange(7)])
    tensors = inputs(7, 2, 2)
    wide, none = (forest_attention(*tensors, forest.segments, replace(Shape(0.5), window=size)) for size in (7, None))
    assert torch.equal(wide, none)
    narrow = forest_attention(*tensors, forest.segments, Shape(0.5, window=6))
    assert torch.equal(narrow[:, :6], none[:, :6])
    assert not torch.allclose(narrow[:, 6], none[:, 6])


@settings(max_examples=60)
@given(words)
def test_a_walk_tells_ancestors_from_others(drawn):
    forest = grow([np.array(sequence) for sequence in drawn])
    enter, leave, depth = walk(forest.segments)
    count = len(forest.tokens_N)
    assert sorted(enter) == list(range(count))
    ancestors = {
        (int(b), int(a))
        for s in range(len(forest.segments))
        for n in [forest.nodes(s)]
        for i, b in enumerate(n)
        for a in n[: i + 1]
    }
    found = {(q, k) for q in range(count) for k in range(count) if enter[k] <= enter[q] < leave[k]}
    assert found == ancestors
    assert depth.tolist() == forest.depth_N.tolist()


@pytest.mark.parametrize("heads", [(4, 4), (6, 2)])
@pytest.mark.parametrize(("window", "softcap"), [(None, None), (3, None), (None, 2.0), (5, 1.0)])
def test_the_form_for_gpus_computes_the_same(heads, window, softcap):
    """Its forward, by the library's own plain operations; it has a backward on GPUs alone."""
    generator = np.random.default_rng(3)
    stem = generator.integers(0, 9, 30)
    forest = grow(
        [
            np.concatenate([stem[:cut], generator.integers(0, 9, more)])
            for cut, more in ((30, 9), (12, 40), (30, 2), (0, 5))
        ]
    )
    shape, tensors = (
        Shape(0.4, window, softcap),
        [each.detach() for each in inputs(len(forest.tokens_N), *heads, width=8)],
    )
    found = flex_attention(*tensors, forest.segments, shape)
    torch.testing.assert_close(found, reference(*tensors, forest.segments, shape), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("cap", [2.0, 30.0, 50.0])
def test_a_soft_cap_keeps_scores_far_below_it(cap):
    """Gemma 2 caps scores of the order of 1 at 50: the cap must not cost them digits."""
    forest, shape = paths_of_some_length(), Shape(0.5, None, cap)
    tensors = inputs(len(forest.tokens_N), 4, 2)
    exact = [one.detach().double().requires_grad_() for one in tensors]
    for each, attend in ((tensors, forest_attention), (exact, reference)):
        attend(*each, forest.segments, shape).square().sum().backward()
    for found, wanted in zip(tensors, exact, strict=True):
        assert (found.grad - wanted.grad).norm() <= 6e-7 * wanted.grad.norm()


def test_values_may_be_narrower_than_keys():
    """As in latent attention."""
    forest = grow([np.array([1, 2, 3]), np.array([1, 2, 4, 5])])
    count, shape = len(forest.tokens_N), Shape(0.5, None, None)
    upstream = torch.randn(4, count, 5, generator=torch.Generator().manual_seed(1))
    found = []
    for attend in (forest_attention, reference):
        query, key, value = inputs(count, 4, 2, width=8)
        narrow = value.detach()[..., :5].clone().requires_grad_()
        out = attend(query, key, narrow, forest.segments, shape)
        out.backward(upstream)
        found.append((out.detach(), query.grad, key.grad, narrow.grad))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
