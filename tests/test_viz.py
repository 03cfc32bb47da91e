"""cnnfast.viz: what is drawn is what was given; without matplotlib the error names what to install."""

from __future__ import annotations

import io
import sys
from typing import Any

import pytest
import torch

from cnnfast import viz

ROWS = [
    {"epoch": epoch, "loss": 1 / epoch, "train_accuracy": 1 - 0.3 / epoch, "test_accuracy": 1 - 0.4 / epoch}
    for epoch in (1, 2, 3)
]
CALLS: dict[str, tuple[Any, ...]] = {
    "image": (torch.rand(28, 28),),
    "images": ([torch.rand(3, 8, 8), torch.randint(256, (9, 7), dtype=torch.uint8)],),
    "feature_maps": (torch.randn(7, 14, 14, requires_grad=True),),
    "before_after": (torch.rand(3, 3, 8, 8), torch.rand(3, 1, 6, 6)),
    "curves": (ROWS,),
    "bars": (["a", "b"], {"one": [1.0, 2.0], "two": [None, 3.0]}),
}


@pytest.fixture
def matplotlib() -> Any:
    return pytest.importorskip("matplotlib")


def test_every_function_has_a_call_here():
    assert sorted(CALLS) == sorted(viz.__all__)


@pytest.mark.parametrize("name", CALLS)
def test_draws_without_pyplot(matplotlib: Any, name: str):
    before = "matplotlib.pyplot" in sys.modules
    file = io.BytesIO()
    getattr(viz, name)(*CALLS[name]).savefig(file, format="svg")
    assert b"<svg" in file.getvalue()
    assert ("matplotlib.pyplot" in sys.modules) == before


@pytest.mark.parametrize("name", CALLS)
def test_without_matplotlib_the_extra_is_named(monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"needs matplotlib; pip install 'cnnfast\[viz\]'"):
        getattr(viz, name)(*CALLS[name])


def test_pixels_and_their_values(matplotlib: Any):
    pixels = torch.tensor([[0, 255], [128, 7]], dtype=torch.uint8)
    axis = viz.image(pixels, title="four").axes[0]
    assert axis.get_title() == "four"
    assert [text.get_text() for text in axis.texts] == ["0", "255", "128", "7"]
    # A dark pixel's text is white, a bright one's black.
    assert [text.get_color() for text in axis.texts] == ["white", "black", "black", "white"]
    assert axis.images[0].get_array().tolist() == pixels.tolist()


def test_colour_is_drawn_as_it_is(matplotlib: Any):
    pixels = torch.rand(3, 4, 5, dtype=torch.bfloat16)
    drawn = viz.image(pixels).axes[0].images[0].get_array()
    assert torch.equal(torch.tensor(drawn), pixels.float().permute(1, 2, 0))


def test_large_images_have_no_values(matplotlib: Any):
    assert not viz.image(torch.rand(17, 4)).axes[0].texts
    assert len(viz.image(torch.rand(17, 4), values=True).axes[0].texts) == 17 * 4


def test_feature_maps_without_a_title(matplotlib: Any):
    axes = viz.feature_maps(torch.rand(3, 2, 2), titles=["first"]).axes
    assert [axis.get_title() for axis in axes[:3]] == ["first", "", ""] and axes[2].images


def test_feature_maps_share_a_scale(matplotlib: Any):
    maps = torch.stack((torch.zeros(4, 4), torch.full((4, 4), 5.0)))
    figure = viz.feature_maps(maps)
    assert [axis.images[0].get_clim() for axis in figure.axes[:2]] == [(0, 5), (0, 5)]


def test_before_and_after_are_in_order(matplotlib: Any):
    before = torch.arange(4.0).view(4, 1, 1, 1) / 4
    figure = viz.before_after(before, 1 - before, count=3)
    assert [axis.images[0].get_array().item() for axis in figure.axes] == [0, 0.25, 0.5, 1, 0.75, 0.5]


def test_curves_of_two_backends(matplotlib: Any):
    loss, accuracy = viz.curves({"cnnfast": ROWS, "torch": ROWS}).axes
    assert [line.get_label() for line in loss.lines] == ["cnnfast, train", "torch, train"]
    assert list(loss.lines[0].get_ydata()) == [row["loss"] for row in ROWS]
    assert list(accuracy.lines[1].get_ydata()) == [100 * row["test_accuracy"] for row in ROWS]


@pytest.mark.parametrize(
    "call, match",
    [
        (lambda: viz.image(torch.rand(2, 4, 4)), r"pixels must be \[H, W\].*pixels.shape=\[2, 4, 4\]"),
        (lambda: viz.image(torch.rand(0, 4)), r"must not be empty, but got pixels.shape=\[0, 4\]"),
        (lambda: viz.image(torch.rand(3, 4, 4), values=True), "grey images only"),
        (lambda: viz.images([]), "at least one image"),
        (lambda: viz.feature_maps(torch.rand(2, 3, 4, 4)), r"maps must be \[K, P, Q\].*=\[2, 3, 4, 4\]"),
        (lambda: viz.before_after(torch.rand(2, 1, 4, 4), torch.rand(3, 1, 4, 4)), "of the same N.*2, 1, 4, 4.*3, 1"),
        (lambda: viz.curves([]), "at least one epoch"),
        (lambda: viz.curves({str(i): ROWS for i in range(7)}), "at most 6 runs can be told apart, but got 7"),
        (lambda: viz.bars(["a"], {"one": [1, 2]}), r"expected 1 numbers.*\['one'\]"),
        (lambda: viz.bars(["a"], {str(i): [i] for i in range(7)}), "at most 6 names"),
    ],
)
def test_errors(call: Any, match: str):
    with pytest.raises(ValueError, match=match):
        call()
