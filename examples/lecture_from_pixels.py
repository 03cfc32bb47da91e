# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From pixels to a trained network
#
# The lecture as a notebook: change a number, run the cell, look. It needs `pip install "cnnfast[train,viz]"`, and
# Jupyter with jupytext, which opens this file as a notebook; `jupytext --to notebook lecture_from_pixels.py` writes it
# as an `.ipynb` for what knows no jupytext.

# %%
# %matplotlib inline
import torch
from torch.nn import functional as F

import cnnfast
from cnnfast import augment, data, functional, viz

torch.manual_seed(0)

# %% [markdown]
# ## An image is numbers
#
# Handwritten digits from scikit-learn's package, 0 for black and 255 for white. A batch has four dimensions: N images,
# C channels, H rows, W columns.

# %%
images, labels = data.load("digits", train=True)
test_images, test_labels = data.load("digits", train=False)
print(images.shape, images.dtype, "the first ten:", labels[:10].tolist())

small = images[0, 0, 2:26:3, 2:26:3]  # the 8x8 pixels of which each was made 3x3
viz.images([small, images[0, 0]], titles=["8x8 pixels and their values", "as the network sees it"], size=4)

# %% [markdown]
# ## One convolution by hand
#
# A window of 3x3 pixels, nine products, one sum. This kernel sharpens: it takes five times the pixel, less its four
# neighbours. With a border of zeros (`padding=1`) the result is as large as the image, and its first number is
# 5 * 60 - 113 - 73 = 114.

# %%
pixels = torch.tensor(
    [
        [60, 113, 56, 139, 85],
        [73, 121, 54, 84, 128],
        [131, 99, 70, 129, 127],
        [80, 57, 115, 69, 134],
        [104, 126, 123, 95, 130],
    ]
).float()
kernel = torch.tensor([[0, -1, 0], [-1, 5, -1], [0, -1, 0]]).float()

padded = F.pad(pixels, (1, 1, 1, 1))
by_hand = torch.stack(
    [torch.stack([(padded[i : i + 3, j : j + 3] * kernel).sum() for j in range(5)]) for i in range(5)]
)
sharpened = functional.conv2d(pixels.view(1, 1, 5, 5), kernel.view(1, 1, 3, 3), padding=1)[0, 0]
assert torch.equal(sharpened, by_hand) and sharpened[0, 0] == 114
viz.images([pixels, kernel, sharpened], titles=["image", "kernel", "result"])

# %% [markdown]
# ## Stride
#
# Two pixels at a time: 3x3 windows in 5x5 pixels have four places left.

# %%
strided = functional.conv2d(pixels.view(1, 1, 5, 5), kernel.view(1, 1, 3, 3), stride=2)[0, 0]
assert strided.shape == (2, 2)
viz.images([pixels, strided], titles=["image", "stride 2"])

# %% [markdown]
# ## Pooling
#
# Of each 2x2 window the largest, or the mean.

# %%
largest = functional.max_pool2d(pixels[None, :4, :4], 2)[0]
means = functional.avg_pool2d(pixels[None, :4, :4], 2)[0]
viz.images([pixels[:4, :4], largest, means], titles=["4x4", "maximum", "mean"], size=2.5)

# %% [markdown]
# ## The network
#
# Twice convolution, ReLU and max-pooling, each time as one op; then two linear layers. Its kernels are random still,
# and so are its answers.

# %%
model = cnnfast.models.LectureCNN()
print(model)


def accuracy(images: torch.Tensor, labels: torch.Tensor) -> float:
    """The share of the images that the model gets right."""
    model.eval()
    with torch.inference_mode():
        return (model(images).argmax(1) == labels).float().mean().item()


x, x_test = images.float() / 255, test_images.float() / 255
print(f"untrained: {accuracy(x_test, test_labels):.1%} of the test images are right")

# %% [markdown]
# ## Augmentation
#
# The same digit a little turned, shifted, larger or smaller, brighter and noisy: a draw for each image, in one pass.
# Put `pipeline(x[batch])` for `x[batch]` below, and train longer: the network then sees no image twice.

# %%
pipeline = augment.Compose(
    [
        augment.RandomRotation(10),
        augment.RandomZoom(scale=(0.9, 1.1)),
        augment.ColorJitter(brightness=0.2),
        augment.RandomCrop(28, padding=2),
        augment.GaussianNoise(sigma=0.02),
    ]
)
viz.before_after(x[:8], pipeline(x[:8]))

# %% [markdown]
# ## Training
#
# In each step 64 images go through the network; `backward` finds out in which direction each weight would have to
# change to make the loss smaller, and the optimizer changes it by a little. `cnnfast.train` is this loop, with
# checkpoints and several processes.

# %%
optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
rows = []
for epoch in range(1, 7):
    model.train()
    losses = []
    for batch in torch.randperm(len(x)).split(64):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x[batch]), labels[batch])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    rows.append(
        {
            "epoch": epoch,
            "loss": sum(losses) / len(losses),
            "train_accuracy": accuracy(x, labels),
            "test_accuracy": accuracy(x_test, test_labels),
        }
    )
viz.curves(rows)

# %% [markdown]
# ## What the first layer looks for
#
# Its twelve kernels, and the map that each makes of one digit, after ReLU and before pooling.

# %%
layer = model.cnn_layers[0]
viz.feature_maps(layer.weight[:, 0], columns=12)

# %%
with torch.inference_mode():
    maps = functional.conv2d_relu(x[0], layer.weight, layer.bias, padding=1)
viz.feature_maps(maps)

# %% [markdown]
# ## What it still gets wrong

# %%
with torch.inference_mode():
    answers = model(x_test).argmax(1)
wrong = (answers != test_labels).nonzero().flatten()[:8].tolist()
print(f"{rows[-1]['test_accuracy']:.1%} of the test images are right")
viz.images(
    [test_images[i, 0] for i in wrong or [0]],
    titles=[f"{test_labels[i]}, taken for {answers[i]}" for i in wrong],
)

# %% [markdown]
# ## Which kernels ran
#
# Everything above ran on cnnfast's own kernels; what would not have, is counted here by its reason.

# %%
assert cnnfast.fallbacks() == {}, cnnfast.fallbacks()
