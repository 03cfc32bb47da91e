"""cnnfast.models: the lecture's network is the plain torch network, key by key and number by number."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cnnfast.models import LectureCNN, PlainLectureCNN

KEYS = [f"{layers}.{i}.{name}" for layers in ("cnn_layers", "fc_layers") for i in (0, 3) for name in ("weight", "bias")]


def _pair(**arguments: int) -> tuple[LectureCNN, PlainLectureCNN]:
    models = []
    for model in (LectureCNN, PlainLectureCNN):
        torch.manual_seed(3)
        models.append(model(**arguments))
    return models[0], models[1]


def test_keys_are_the_lectures():
    for model in _pair():
        assert list(model.state_dict()) == KEYS
        dropout = model.fc_layers[2]
        assert isinstance(dropout, nn.Dropout) and dropout.p == 0.2


@pytest.mark.parametrize("in_channels", [1, 3])
def test_same_seed_gives_the_same_weights(in_channels: int):
    ours, plain = _pair(in_channels=in_channels, num_classes=7)
    assert ours.cnn_layers[0].weight.shape == (12, in_channels, 3, 3)
    for name, value in plain.state_dict().items():
        assert torch.equal(ours.state_dict()[name], value), name


def test_weights_load_both_ways():
    ours, plain = LectureCNN(), PlainLectureCNN()
    images = torch.rand(5, 1, 28, 28)
    plain.load_state_dict(ours.state_dict())
    torch.testing.assert_close(ours.eval()(images), plain.eval()(images))
    other = PlainLectureCNN().eval()
    ours.load_state_dict(other.state_dict())
    torch.testing.assert_close(ours(images), other(images))


@pytest.mark.parametrize("in_channels", [1, 3])
@pytest.mark.parametrize("batch", [0, 1, 7])
def test_results_and_gradients_are_those_of_torch(in_channels: int, batch: int):
    images = torch.rand(batch, in_channels, 28, 28)
    target = torch.arange(batch) % 10
    models = _pair(in_channels=in_channels)
    logits = []
    for model in models:
        torch.manual_seed(5)  # Dropout is on.
        logits.append(model(images))
        F.cross_entropy(logits[-1], target, reduction="sum").backward()
    assert logits[0].shape == (batch, 10)
    torch.testing.assert_close(*logits)
    for (name, ours), plain in zip(models[0].named_parameters(), models[1].parameters()):
        torch.testing.assert_close(ours.grad, plain.grad, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: name + text)


def test_cnn_layers_alone():
    ours, plain = _pair()
    images = torch.rand(4, 1, 28, 28)
    assert ours.cnn_layers(images).shape == (4, 24, 7, 7)
    torch.testing.assert_close(ours.cnn_layers(images), plain.cnn_layers(images))


def test_an_entry_put_in_place_of_an_identity_is_called():
    ours = LectureCNN()
    images = torch.rand(2, 1, 28, 28)
    ours.cnn_layers[5] = nn.Flatten()
    assert ours.cnn_layers(images).shape == (2, 24 * 7 * 7)
