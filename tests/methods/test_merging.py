"""Merging low-rank corrections and whole weights: peft's figures, published identities, and what must be refused."""

import pytest
import torch
from peft import LoraConfig, PeftModel
from peft.utils import merge_utils

from tunesmith.base import ConfigError
from tunesmith.methods.adapters import trainable
from tunesmith.methods.adapters.dora import DoRA
from tunesmith.methods.adapters.lora import LoRA
from tunesmith.methods.merging import Merging
from tunesmith.methods.merging.base import Correction, agreed, dropped, largest, low_rank
from tunesmith.methods.merging.cat import Cat
from tunesmith.methods.merging.dare_linear import DareLinear
from tunesmith.methods.merging.dare_ties import DareTies
from tunesmith.methods.merging.linear import Linear
from tunesmith.methods.merging.magnitude_prune import MagnitudePrune
from tunesmith.methods.merging.peft_file import rank_of, read_corrections, silent, write_corrections
from tunesmith.methods.merging.svd import SVD
from tunesmith.methods.merging.ties import Ties

VOCABULARY = 97


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def corrections(count=3, rank=4, rows=12, columns=9):
    generator = seeded(1)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    return [Correction(draw(rank, columns), draw(rows, rank)) for _ in range(count)]


def deltas(**shape):
    return [one.delta for one in corrections(**shape)]


@pytest.fixture
def adapters(build, tmp_path):
    """Makes folders of LoRA adapters of one base, as a training leaves them; each by a seed of its own."""

    def make(*adapters):
        folders = []
        for number, adapter in enumerate(adapters):
            loaded = build("llama", seed=3, vocab_size=VOCABULARY)
            adapter.attach(loaded, number)
            generator = seeded(number)
            with torch.no_grad():
                for parameter in trainable(loaded.model).values():
                    parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
            adapter.save(loaded, tmp_path / f"{number}")
            folders.append(tmp_path / f"{number}")
        return folders

    return make


class TestAgainstPeft:
    """`add_weighted_adapter` on the files that we write, layer by layer."""

    @pytest.mark.parametrize(
        ("method", "theirs"),
        [
            (Cat(), {"combination_type": "cat"}),
            (Linear(), {"combination_type": "linear"}),
            (SVD(rank=3), {"combination_type": "svd", "svd_rank": 3}),
            (Ties(density=0.3, rank=3), {"combination_type": "ties_svd", "density": 0.3, "svd_rank": 3}),
            (
                MagnitudePrune(density=0.3, rank=3),
                {"combination_type": "magnitude_prune_svd", "density": 0.3, "svd_rank": 3},
            ),
        ],
        ids=lambda one: getattr(one, "kind", ""),
    )
    @pytest.mark.parametrize("weights", [(0.6, 0.4), (1.0, -0.5)])
    def test_adapters_merged_by_either_are_one(self, build, adapters, method, theirs, weights):
        folders = adapters(LoRA(rank=4, alpha=6), LoRA(rank=4, alpha=8, scaling="root"))
        other = PeftModel.from_pretrained(build("llama", seed=3, vocab_size=VOCABULARY).model, folders[0], "a")
        other.load_adapter(folders[1], "b")
        other.add_weighted_adapter(["a", "b"], list(weights), "merged", **theirs)
        ours = [read_corrections(folder) for folder in folders]
        assert len(ours[0]) == 14
        for path in ours[0]:
            layer = other.base_model.model.get_submodule(path)
            found, _ = method.correction([one[path] for one in ours], weights, seeded())
            torch.testing.assert_close(found.delta, layer.get_delta_weight("merged"), atol=1e-6, rtol=1e-5)

    @pytest.mark.parametrize(
        ("method", "theirs"),
        [(DareLinear(density=0.4), merge_utils.dare_linear), (DareTies(density=0.4), merge_utils.dare_ties)],
        ids=["dare_linear", "dare_ties"],
    )
    def test_draws_of_one_seed_merge_alike(self, method, theirs):
        torch.manual_seed(7)
        expected = theirs(deltas(), torch.tensor([0.6, 0.4, -0.2]), 0.4)
        found = method.combined(deltas(), (0.6, 0.4, -0.2), seeded(7))
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-6)
        assert not torch.allclose(method.combined(deltas(), (0.6, 0.4, -0.2), seeded(8)), expected, atol=1e-2)

    def test_peft_reads_what_is_written(self, build, adapters, tmp_path):
        folders = adapters(LoRA(rank=2, alpha=3), LoRA(rank=4, alpha=6, start="principal"))
        ours = [read_corrections(folder) for folder in folders]
        merged = {path: Cat().correction([one[path] for one in ours], (0.6, 0.4), seeded())[0] for path in ours[0]}
        adapter = write_corrections(tmp_path / "merged", merged, folders[0])
        assert LoraConfig.from_pretrained(tmp_path / "merged").r == adapter.rank == rank_of(tmp_path / "merged") == 10
        theirs = PeftModel.from_pretrained(
            build("llama", seed=3, vocab_size=VOCABULARY).model, tmp_path / "merged"
        ).merge_and_unload()
        loaded = build("llama", seed=3, vocab_size=VOCABULARY)
        base = {name: weight.clone() for name, weight in loaded.model.named_parameters()}
        adapter.restore(loaded, tmp_path / "merged")
        adapter.merge(loaded)
        for name, weight in loaded.model.named_parameters():
            torch.testing.assert_close(weight, theirs.get_parameter(name), atol=1e-6, rtol=1e-6)
            path = name.removesuffix(".weight")
            if path in merged:
                deltas = [one[path].delta for one in ours]
                torch.testing.assert_close(weight, base[name] + 0.6 * deltas[0] + 0.4 * deltas[1], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("member", Merging.members(), ids=lambda member: member.model_fields["kind"].default)
class TestEveryMember:
    def test_one_run_with_weight_one_is_given_back_where_nothing_is_pruned(self, member):
        method = member(density=1.0) if "density" in member.model_fields else member()
        (one,) = corrections(count=1)
        found, whole = method.correction([one], (1.0,), seeded())
        torch.testing.assert_close(found.delta, one.delta, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(whole, one.delta, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(method.combined([one.delta], (1.0,), seeded()), one.delta)

    def test_weights_that_cancel_leave_the_base(self, member):
        (one,) = corrections(count=1)
        method = member(density=1.0) if "density" in member.model_fields else member()
        found, _ = method.correction([one, one], (0.7, -0.7), seeded())
        assert found.delta.abs().max() < 1e-5

    def test_what_a_run_left_alone_counts_for_nothing_and_draws_are_the_seed_s(self, member):
        sources = corrections(count=2)
        sources.append(silent(sources[0], 4))
        found = [member().correction(sources, (0.6, 0.4, 5.0), seeded(2))[1] for _ in range(2)]
        assert torch.equal(*found)
        without = member().correction(sources[:2], (0.6, 0.4), seeded(2))[1]
        torch.testing.assert_close(found[0], without, atol=1e-5, rtol=1e-5)


class TestByHand:
    def test_a_concatenation_is_the_sum_and_ranks_add_up(self):
        sources = [*corrections(count=2), *corrections(count=1, rank=2)]
        weights = (0.6, 0.4, -1.5)
        found, whole = Cat().correction(sources, weights, seeded())
        expected = sum(w * one.up_OR.double() @ one.down_RI.double() for w, one in zip(weights, sources, strict=True))
        assert found.rank == 4 + 4 + 2
        torch.testing.assert_close(found.delta.double(), expected, atol=1e-5, rtol=1e-5)
        assert torch.equal(whole, found.delta)

    def test_ties_keeps_the_sign_that_prevails(self):
        """Columns: they agree; one large value outweighs two; two agree; they cancel, so it is plus."""
        a = torch.tensor([3.0, -5.0, 0.1, 2.0])
        b = torch.tensor([1.0, 2.0, -4.0, -2.0])
        c = torch.tensor([2.0, 2.0, -0.1, 0.0])
        assert torch.equal(agreed([a, b, c], (1, 1, 1)), torch.tensor([2.0, -5.0, -2.05, 2.0]))
        assert torch.equal(largest(a, 0.75), torch.tensor([3.0, -5.0, 0.0, 2.0]))

    @pytest.mark.parametrize("density", [0.2, 0.6, 1.0])
    def test_ties_is_the_algorithm_of_the_paper(self, density):
        three = [delta.flatten() for delta in deltas()]
        found = Ties(density=density).combined(three, (1, 1, 1), seeded())
        torch.testing.assert_close(found, by_hand(density, *three))

    def test_dropping_keeps_the_expectation(self):
        delta = torch.tensor([1.0, -2.0, 3.0, -4.0])
        generator = seeded(5)
        drawn = torch.stack([dropped(delta, 0.25, generator) for _ in range(20_000)])
        assert set(drawn[:, 0].tolist()) == {0.0, 4.0}
        assert float((drawn[:, 0] != 0).float().mean()) == pytest.approx(0.25, abs=0.01)
        torch.testing.assert_close(drawn.mean(0), delta, atol=0.15, rtol=0)

    def test_the_rank_that_is_kept_is_the_best(self):
        whole = deltas(count=1, rank=6)[0]
        left, values, right = torch.linalg.svd(whole, full_matrices=False)
        found = low_rank(whole, 2)
        torch.testing.assert_close(found.delta, left[:, :2] @ values[:2].diag() @ right[:2], atol=1e-5, rtol=1e-5)
        assert float((found.delta - whole).square().sum()) == pytest.approx(float(values[2:].square().sum()), rel=1e-4)
        wide = low_rank(whole, 30)
        assert (wide.down_RI.shape, wide.up_OR.shape) == ((30, 9), (12, 30))
        torch.testing.assert_close(wide.delta, whole, atol=1e-5, rtol=1e-5)

    def test_ranks_by_default(self):
        sources = [*corrections(count=2), *corrections(count=1, rank=2)]
        assert SVD().correction(sources, (1, 1, 1), seeded())[0].rank == 4
        assert Ties().correction(sources, (1, 1, 1), seeded())[0].rank == 10
        assert DareLinear(rank=3).correction(sources, (1, 1, 1), seeded())[0].rank == 3


def by_hand(density, *deltas):
    """TIES, value by value."""
    trimmed = []
    for delta in deltas:
        order = sorted(range(len(delta)), key=lambda place: -abs(float(delta[place])))
        kept = order[: int(density * len(delta))]
        trimmed.append([float(value) if place in kept else 0.0 for place, value in enumerate(delta)])
    found = []
    for values in zip(*trimmed, strict=True):
        sign = 1 if sum(values) >= 0 else -1
        agreeing = [value for value in values if value * sign > 0]
        found.append(sum(agreeing) / max(1, len(agreeing)))
    return torch.tensor(found)


class TestRefusals:
    def test_factors_of_different_rank_are_not_added(self):
        with pytest.raises(ConfigError, match=r"of one rank, these runs have 4, 8; take cat or svd"):
            Linear().check([4, 8])
        Linear().check([4, 4])
        Linear().check(None)

    def test_whole_weights_are_not_cut(self):
        with pytest.raises(ConfigError, match="take cat"):
            SVD().check(None)
        with pytest.raises(ConfigError, match="leave rank out"):
            Ties(rank=4).check(None)
        Ties().check(None)


def test_only_plain_low_rank_adapters_are_read_as_such(adapters, tmp_path):
    plain, turned = adapters(LoRA(rank=4), DoRA(rank=4))
    assert rank_of(plain) == 4
    assert rank_of(turned) is None
    assert rank_of(tmp_path) is None
    (plain / "base_moves.safetensors").write_bytes(b"")
    assert rank_of(plain) is None
