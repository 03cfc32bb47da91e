"""cnnfast.augment as callers meet it: seeds, threads, replay, masks, folding."""

from __future__ import annotations

import copy
import pickle

import augment_reference as reference
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from cnnfast import augment
from cnnfast.augment.transform import Transform

COLOR = augment.ColorJitter(brightness=0.3, contrast=0.3, saturation=0.3)


def lecture(size: int | tuple[int, int] = 28, sigma: float = 0.05) -> augment.Compose:
    return augment.Compose(
        [
            augment.RandomRotation(15),
            augment.RandomHorizontalFlip(),
            augment.RandomZoom((0.9, 1.1)),
            augment.ColorJitter(brightness=0.2),
            augment.RandomCrop(size, padding=2),
            augment.GaussianNoise(sigma=sigma),
        ]
    )


TRANSFORMS: dict[str, Transform] = {
    "rotation": augment.RandomRotation(30),
    "horizontal_flip": augment.RandomHorizontalFlip(),
    "vertical_flip": augment.RandomVerticalFlip(),
    "zoom": augment.RandomZoom((0.8, 1.2)),
    "affine": augment.RandomAffine(10, (0.1, 0.1), (0.9, 1.1), 10),
    "crop": augment.RandomCrop(5, padding=3),
    "resized_crop": augment.RandomResizedCrop((6, 7)),
    "color": COLOR,
    "grayscale": augment.Grayscale(),
    "noise": augment.GaussianNoise(),
    "lecture": lecture(9),
}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def smooth(count: int = 4, channels: int = 3, size: tuple[int, int] = (28, 36)) -> Tensor:
    """Images whose interpolation, once or twice, hardly differs."""
    coarse = torch.rand((count, channels, 3, 3), generator=seeded(7))
    return F.interpolate(coarse, size, mode="bicubic", align_corners=True).clamp(0, 0.8)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_seeds_and_threads(name: str, dtype: torch.dtype) -> None:
    transform = TRANSFORMS[name]
    images = (smooth(33, 3, (11, 13)) * (255 if dtype == torch.uint8 else 1)).to(dtype)
    first = transform(images, seeded())
    assert first.dtype == dtype and first.shape[0] == 33
    try:
        torch.set_num_threads(3)
        assert torch.equal(transform(images, seeded()), first)
        assert torch.equal(transform(images.flip(0).flip(0), seeded()), first)
    finally:
        torch.set_num_threads(1)
    if name != "grayscale":
        assert not torch.equal(transform(images, seeded(1)), first)
    torch.manual_seed(5)
    default = transform(images)
    torch.manual_seed(5)
    assert torch.equal(transform(images), default)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_sampled_parameters_are_those_of_a_call(name: str) -> None:
    transform, images = TRANSFORMS[name], smooth()
    parameters = transform.sample(images.shape, generator=seeded(3))
    assert torch.equal(transform.apply(images, parameters), transform(images, seeded(3)))
    assert parameters.values.shape == (4, len(parameters.names)) and set(parameters.to_dict()) == set(parameters.names)
    again = pickle.loads(pickle.dumps(parameters))
    assert torch.equal(transform.apply(images, again), transform.apply(images, parameters))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_empty_batch_and_copies(name: str) -> None:
    transform = TRANSFORMS[name]
    assert transform(torch.empty(0, 3, 8, 9)).shape == (0, *transform(torch.ones(1, 3, 8, 9)).shape[1:])
    images = smooth()
    for other in (copy.deepcopy(transform), pickle.loads(pickle.dumps(transform))):
        assert torch.equal(other(images, seeded()), transform(images, seeded()))


@pytest.mark.parametrize("size", [(1, 9), (9, 1), (1, 1), (3, 200)], ids=str)
@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_any_size_and_layout(size: tuple[int, int], dtype: torch.dtype) -> None:
    images = (smooth(5, 3, size) * (255 if dtype == torch.uint8 else 1)).to(dtype)
    transform = augment.Compose([augment.RandomRotation(20), augment.RandomCrop(size, padding=1), COLOR])
    expected = transform(images, seeded())
    last = transform(images.to(memory_format=torch.channels_last), seeded())
    assert torch.equal(last, expected)
    spread = torch.stack((images, images), -1)[..., 0]
    assert torch.equal(transform(spread, seeded()), expected)


def test_memory_format_is_kept() -> None:
    images = smooth().to(memory_format=torch.channels_last)
    assert lecture()(images).is_contiguous(memory_format=torch.channels_last)
    assert lecture()(images.contiguous()).is_contiguous()


def test_each_image_has_its_own_draw() -> None:
    image = smooth(1).expand(16, -1, -1, -1)
    result = lecture()(image, seeded()).flatten(1)
    assert torch.pdist(result).min() > 0.1


def test_draws_are_uniform() -> None:
    t = augment.Compose([augment.RandomRotation((-10, 30)), augment.RandomHorizontalFlip(0.3), augment.RandomCrop(5)])
    parameters = t.sample((20_000, 1, 8, 9), seeded())
    angle = parameters["0.angle"]
    assert angle.min() >= -10 and angle.max() < 30 and abs(angle.mean() - 10) < 0.5
    assert abs(parameters["1.horizontal"].mean() - 0.3) < 0.02
    for name, most in (("2.top", 3), ("2.left", 4)):
        values, counts = parameters[name].unique(return_counts=True)
        assert values.tolist() == list(range(most + 1))
        assert counts.min() > 0.9 * 20_000 / (most + 1)
    for p in (0, 1):
        assert augment.RandomVerticalFlip(p).sample((20_000, 1, 2, 2))["vertical"].unique().tolist() == [p]
    moved = augment.RandomAffine(0, translate=(0.25, 0)).sample((20_000, 1, 8, 8))
    assert moved["translate_x"].unique().tolist() == [-2, -1, 0, 1, 2] and not moved["translate_y"].any()
    window = augment.RandomResizedCrop(4, (0.2, 0.9)).sample((20_000, 1, 30, 20))
    assert (window["top"] + window["height"]).max() <= 30 and (window["left"] + window["width"]).max() <= 20
    assert window["height"].min() >= 1 and window["top"].min() >= 0


def test_masks_move_with_images() -> None:
    transform = lecture((20, 24))
    images = smooth()
    masks = (images[:, :1] > 0.4).to(torch.uint8)
    parameters = transform.sample(images.shape, seeded())
    moved = transform.apply_mask(masks, parameters)
    assert moved.shape == (4, 1, 20, 24) and set(moved.unique().tolist()) <= {0, 1}
    # The same geometry, of float images without colour and noise, cut at the same level.
    geometric = augment.Compose(
        [
            augment.RandomRotation(15, "nearest"),
            augment.RandomHorizontalFlip(),
            augment.RandomZoom((0.9, 1.1), "nearest"),
            augment.RandomCrop((20, 24), padding=2),
        ]
    )
    columns = torch.tensor([not name.startswith("3.") for name in parameters.names])
    same = geometric.apply(images[:, :1], geometric.sample(images.shape).__class__(
        parameters.values[:, columns].contiguous(), tuple(n for n in parameters.names if not n.startswith("3."))
    ))  # fmt: skip
    assert torch.equal((same > 0.4).to(torch.uint8), moved)
    # Whatever the masks are, colour is nothing to them.
    colored = augment.Compose([COLOR, transform, augment.Grayscale(3), augment.Normalize([0.5] * 3, [1] * 3)])
    drawn = colored.sample(images.shape, seeded())
    drawn.values[:, 3:] = parameters.values
    assert torch.equal(colored.apply_mask(masks, drawn), moved)
    assert torch.equal(COLOR.apply_mask(masks, COLOR.sample((4, 3, 28, 36))), masks)


@pytest.mark.parametrize("name", ["rotation", "affine", "crop", "resized_crop", "lecture", "two_passes"])
def test_boxes_move_with_images(name: str) -> None:
    """The box of a bright rectangle lies around where the rectangle went, and not much further out."""
    two = [augment.RandomCrop(30, padding=5), augment.GaussianNoise(), augment.RandomHorizontalFlip()]
    transform = TRANSFORMS[name] if name in TRANSFORMS else augment.Compose(two)
    if name in ("crop", "resized_crop", "lecture"):
        transform = {"crop": augment.RandomCrop(24, padding=3), "resized_crop": augment.RandomResizedCrop((60, 44)),
                     "lecture": lecture()}[name]  # fmt: skip
    boxes = torch.tensor([10.0, 8, 20, 19]).expand(16, 1, 4)
    images = torch.zeros(16, 1, 28, 30, dtype=torch.uint8)
    images[:, :, 8:19, 10:20] = 1
    parameters = transform.sample(images.shape, seeded(2))
    moved, masks = transform.apply_boxes(boxes, parameters, (28, 30)), transform.apply_mask(images, parameters)
    assert moved.shape == boxes.shape and moved.dtype == boxes.dtype
    for box, mask in zip(moved[:, 0], masks[:, 0]):
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        if not len(rows):
            continue
        found = torch.tensor([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        growth = (box - found) * torch.tensor([-1, -1, 1, 1])
        assert growth.min() > -1.01 and growth.max() < (3.5 if name == "resized_crop" else 1.6), (box, found)


def one_by_one(compose: augment.Compose, images: Tensor, parameters: augment.Parameters) -> Tensor:
    """Each transform in a pass of its own, with its share of the parameters."""
    for index, transform in enumerate(compose.transforms_in_order()):
        mine = [i for i, name in enumerate(parameters.names) if name.startswith(f"{index}.")]
        names = tuple(parameters.names[i].split(".", 1)[1] for i in mine)
        alone = augment.Compose([augment.Compose([transform])])
        share = augment.Parameters(parameters.values[:, mine].contiguous(), tuple(f"0.{n}" for n in names))
        images = alone.apply(images, share)
    return images


# Passes that a Compose has, and how far it may be from its steps one by one.
PIPELINES: dict[str, tuple[list[Transform], int, float]] = {
    "flips_and_crops": (
        [augment.RandomHorizontalFlip(), augment.RandomCrop(24, padding=3, fill=0.5), augment.RandomVerticalFlip(),
         augment.RandomCrop((20, 40), padding=9, fill=0.25)], 1, 0),
    "colors_then_crops": (
        [augment.ColorJitter(0.4, 0, 0.4), augment.RandomHorizontalFlip(), augment.Grayscale(3),
         augment.RandomCrop(30, padding=4, fill=0.7), augment.ColorJitter(0.4)], 1, 1e-6),
    "contrast_after_geometry": (
        [augment.RandomCrop(30, padding=4), augment.ColorJitter(0.2, 0.5), augment.RandomVerticalFlip()], 2, 1e-6),
    "normalize_then_pad": (
        [augment.Normalize([0.5], [0.2]), augment.RandomCrop(32, padding=4), augment.Normalize([0.1], [2])], 1, 1e-5),
    "sample_after_color": (
        [augment.RandomRotation(20), augment.ColorJitter(0.3), augment.RandomZoom((0.9, 1.2))], 2, 1e-6),
    "two_interpolations": ([augment.RandomRotation(20), augment.RandomZoom((0.7, 1.2), "nearest")], 2, 0),
    "window_after_rotation": ([augment.RandomRotation(20), augment.RandomResizedCrop(20)], 2, 1e-6),
    "gray_of_one_channel": (
        [augment.Grayscale(), augment.RandomCrop(30, padding=4, fill=0.3), augment.Normalize([0.5], [0.25])], 1, 1e-6),
    "window_then_crop": (
        [augment.RandomResizedCrop(20), augment.RandomHorizontalFlip(), augment.RandomCrop(24, padding=5)], 1, 1e-6),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.uint8], ids=str)
@pytest.mark.parametrize("name", PIPELINES)
def test_compose_equals_its_steps(name: str, dtype: torch.dtype, isa: str) -> None:
    transforms, count, tolerance = PIPELINES[name]
    if dtype == torch.uint8 and any(isinstance(t, augment.Normalize) for t in transforms):
        transforms = [augment.ToDtype(torch.float32, scale=True), *transforms]
    compose = augment.Compose(transforms)
    assert repr(compose).count("pass ") == count
    images = smooth()
    if dtype == torch.uint8:
        images = (images * 255).round().to(dtype)
    parameters = compose.sample(images.shape, seeded(), dtype=dtype)
    actual, expected = compose.apply(images, parameters), one_by_one(compose, images, parameters)
    assert actual.dtype == expected.dtype
    difference = (actual.double() - expected.double()).abs()
    # Greys of uint8 that rounding moves across a whole number are one further.
    assert (difference > tolerance).double().mean() <= (0.002 if dtype == torch.uint8 else 0), difference.max()


@pytest.mark.parametrize("name", ["rotation_zoom", "rotation_crop_affine", "crop_rotation"])
def test_folded_equals_its_steps_up_to_interpolation(name: str) -> None:
    transforms = {
        "rotation_zoom": [augment.RandomRotation(40), augment.RandomHorizontalFlip(), augment.RandomZoom((0.7, 1.3))],
        "rotation_crop_affine": [
            augment.RandomRotation(40),
            augment.RandomCrop((24, 30), padding=4),
            augment.RandomAffine(20, (0.1, 0.1), (0.8, 1.2), 10),
        ],
        "crop_rotation": [augment.RandomCrop((34, 20), padding=6), augment.RandomRotation(60)],
    }[name]
    compose = augment.Compose(transforms)
    assert repr(compose).count("pass ") == 1
    images = smooth(32)
    parameters = compose.sample(images.shape, seeded())
    difference = (compose.apply(images, parameters) - one_by_one(compose, images, parameters)).abs()
    # Edges, which one blends twice and the other cuts, differ; the inside hardly does.
    assert difference.median() < 0.004 and (difference > 0.02).float().mean() < 0.1


def test_noise_belongs_to_where_the_pixel_is_when_it_is_added() -> None:
    noise, crop = augment.GaussianNoise(0.5, 0.05, clip=False), augment.RandomCrop(30, padding=4)
    black = torch.zeros(4, 1, 28, 28)
    # After a crop: on the padding as inside, and the same wherever the window lies.
    after = augment.Compose([crop, noise])
    drawn = after.sample(black.shape, seeded())
    expected = augment.Compose([augment.RandomZoom((1, 1)), noise])
    still = augment.Parameters(torch.ones(4, 1), ("0.scale",), drawn.key)
    noisy = after.apply(black, drawn)
    assert torch.equal(noisy, expected.apply(torch.zeros(4, 1, 30, 30), still))
    assert noisy.flatten(1).std(1).min() > 0.04
    # Before it: it moves with the pixels, and the padding has none.
    before = augment.Compose([noise, crop])
    drawn = before.sample(black.shape, seeded())
    drawn.values[:] = 0
    moved = before.apply(black, drawn)
    assert not moved[..., :4, :].any() and not moved[..., :4].any()
    assert torch.equal(moved[..., 4:, 4:], noise.apply(black, augment.Parameters(torch.empty(4, 0), (), drawn.key))
                       [..., :26, :26])  # fmt: skip


def test_changes_are_seen() -> None:
    images = smooth()
    inner = augment.Compose([augment.RandomHorizontalFlip(0.0)])
    outer = augment.Compose([inner, augment.RandomVerticalFlip(0.0)])
    assert torch.equal(outer(images), images)
    inner.transforms[0] = augment.RandomHorizontalFlip(1.0)
    assert torch.equal(outer(images), images.flip(3))
    outer.transforms[1].p = 1.0
    assert torch.equal(outer(images), images.flip(2, 3))
    outer.transforms = outer.transforms[1:]
    assert torch.equal(outer(images), images.flip(2))
    outer.transforms.append(augment.RandomHorizontalFlip(1.0))
    assert torch.equal(outer.eval()(images), images.flip(2, 3))


def test_other_default_dtypes() -> None:
    images, expected = smooth(), [TRANSFORMS[name](smooth(), seeded()) for name in TRANSFORMS]
    torch.set_default_dtype(torch.float64)
    try:
        for name, result in zip(TRANSFORMS, expected, strict=True):
            transform = copy.deepcopy(TRANSFORMS[name])
            assert torch.equal(transform(images, seeded()), result)
    finally:
        torch.set_default_dtype(torch.float32)


def test_plans_of_fake_tensors_are_not_kept() -> None:
    transform = lecture()
    with torch._subclasses.FakeTensorMode():
        assert transform(torch.empty(2, 1, 28, 28)).shape == (2, 1, 28, 28)
    images = smooth(2, 1, (28, 28))
    assert torch.equal(transform(images, seeded()), lecture()(images, seeded()))


@pytest.mark.parametrize("channels", [2, 4])
def test_fills_of_other_channels(channels: int) -> None:
    fill = [0.1, 0.2, 0.3, 0.4][:channels]
    transform = augment.Compose([augment.RandomCrop(30, padding=1, fill=fill), augment.RandomRotation(5, fill=fill)])
    assert "pass 1: RandomCrop -> RandomRotation" in repr(transform)
    images = smooth(2, channels)[:, :channels] if channels < 4 else smooth(2, 4)
    parameters = transform.sample(images.shape, seeded())
    assert transform.apply(images, parameters).shape == (2, channels, 30, 30)
    assert transform.apply_mask(images[:, :1], parameters).shape == (2, 1, 30, 30)
    assert transform.apply_boxes(torch.ones(2, 3, 4), parameters, images.shape[2:]).shape == (2, 3, 4)
    padded = augment.RandomCrop((30, 38), padding=1, fill=fill)(images)
    assert torch.equal(padded[0, :, 0, 0], torch.tensor(fill))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_copied_pixels_do_not_touch_their_neighbours(value: float) -> None:
    images = smooth(2)
    images[:, :, 3, 5] = value
    transform = augment.Compose([augment.RandomHorizontalFlip(1.0), augment.RandomVerticalFlip(1.0)])
    torch.testing.assert_close(transform(images), images.flip(2, 3), rtol=0, atol=0, equal_nan=True)
    cropped = augment.RandomCrop(images.shape[2:])(images)
    torch.testing.assert_close(cropped, images, rtol=0, atol=0, equal_nan=True)


def test_repr_shows_passes() -> None:
    assert "pass 1: RandomRotation -> RandomHorizontalFlip -> RandomZoom -> ColorJitter.brightness -> RandomCrop -> " \
        "GaussianNoise (bilinear, folded)" in repr(lecture())  # fmt: skip
    text = repr(augment.Compose([augment.RandomRotation(5), augment.ColorJitter(0, 0.5)]))
    assert "pass 2: grey's mean, then ColorJitter.contrast" in text
    assert repr(augment.Compose([])) == "Compose()"
    assert repr(augment.RandomRotation(5)) == "RandomRotation(degrees=(-5.0, 5.0), interpolation='bilinear', fill=0)"


def test_identity_is_a_copy() -> None:
    images = smooth()
    for transform in (augment.Compose([]), augment.RandomRotation(0), augment.Grayscale(3)):
        result = transform(images[:, :1].expand(-1, 3, -1, -1))
        torch.testing.assert_close(result, images[:, :1].expand(-1, 3, -1, -1), rtol=2e-4, atol=0)
        assert result.data_ptr() != images.data_ptr()


def test_in_a_model() -> None:
    model = torch.nn.Sequential(lecture(), torch.nn.Flatten())
    seen: list[str] = []
    model.apply(lambda module: seen.append(type(module).__name__))
    assert seen.count("RandomCrop") == 1 and seen[-1] == "Sequential"
    assert model(smooth(2, 1, (28, 28))).shape == (2, 784) and not model.state_dict()


def test_many_steps_take_more_passes() -> None:
    compose = augment.Compose([augment.RandomHorizontalFlip(1.0)] * 21 + [augment.ColorJitter(0.1)] * 50)
    assert repr(compose).count("pass ") > 3
    images = smooth()
    flipped = augment.Compose([augment.RandomHorizontalFlip(1.0)] * 21)
    assert torch.equal(flipped(images), images.flip(-1))
    assert compose(images).shape == images.shape


def test_changed_parameters_are_replayed() -> None:
    transform, images = augment.RandomRotation(10), smooth(2, 1, (20, 20))
    parameters = transform.sample(images.shape)
    parameters["angle"].fill_(90)
    torch.testing.assert_close(transform.apply(images, parameters), images.rot90(1, (2, 3)), rtol=0, atol=1e-6)
    for bad in (float("nan"), float("inf"), -1e30):
        for t in (transform, augment.RandomResizedCrop(7), augment.RandomCrop(7), lecture(20)):
            wild = t.sample(images.shape)
            wild.values.fill_(bad)
            t.apply(images, wild)  # whatever it shows, it reads nothing but pixels
    with pytest.raises(KeyError, match=r"must have the column, but got 'scale'; there are \['angle'\]"):
        parameters["scale"]


def test_fake_kernels() -> None:
    images = smooth()
    constants, parameters = torch.tensor([0.5, 0.0] * 3), torch.empty(4, 0)
    arguments = (images, parameters, constants, None, None, [28, 36, 3, 0, 0], [], [0, -1, 0, 0], torch.float16)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(torch.ops.cnnfast.augment.default, arguments, test_utils=tests)
    torch.library.opcheck(torch.ops.cnnfast.augment_gray_mean.default, (images,), test_utils=tests)
    means = torch.ops.cnnfast.augment_gray_mean(images)
    expected = torch.stack([reference.gray(image.double()).mean() for image in images])
    torch.testing.assert_close(means.double(), expected, rtol=1e-6, atol=0)
