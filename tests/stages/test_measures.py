"""What is measured of a model before and after it is pruned."""

import torch

from tunesmith.stages.measures import deflated, paces


def test_fewer_layers_write_more_quickly(build):
    deep, shallow = (build("llama", num_hidden_layers=layers, vocab_size=97, hidden_size=64) for layers in (24, 2))
    first, second = paces([deep, shallow], seed=0)
    assert second.writing > 1.3 * first.writing
    assert second.reading > 0


def test_zeros_compress(build):
    loaded = build("llama", vocab_size=97, spread=0.1)
    before = deflated(loaded.model)
    with torch.no_grad():
        for layer in loaded.model.model.layers:
            for parameter in layer.parameters():
                parameter.zero_()
    assert before > 0.85
    assert deflated(loaded.model) < 0.1
