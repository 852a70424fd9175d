import hashlib

import numpy as np
import pytest
import torch

from robustkit.api import Dataset
from robustkit.datasets import load_dataset
from robustkit.datasets.scenes import NAMES, Scenes
from robustkit.errors import UsageError


def test_scenes_are_balanced_colour_images_on_8_bits():
    data = load_dataset("scenes")
    assert isinstance(data, Dataset)
    assert (len(data), data.classes, len(NAMES)) == (10_000, 10, 10)
    x, y = data.batch(range(200))
    assert (x.shape, x.dtype, y.dtype) == ((200, 3, 32, 32), torch.float32, torch.int64)
    assert x.min() >= 0
    assert x.max() <= 1
    assert torch.equal((x * 255).round() / 255, x)
    assert y.bincount().tolist() == [20] * 10
    assert data.batch([])[0].shape == (0, 3, 32, 32)


def test_an_image_is_the_same_whatever_n_and_its_batch():
    few, many = Scenes(n=50, seed=3), Scenes(n=7000, seed=3)
    x, y = few.batch(range(50))
    assert torch.equal(x, torch.cat([many.batch([i])[0] for i in range(50)]))
    order = torch.randperm(50, generator=torch.Generator().manual_seed(0)).tolist()
    shuffled, labels = many.batch(order)
    assert torch.equal(shuffled, x[order])
    assert torch.equal(labels, y[order])
    assert torch.equal(many.masks(order), few.masks(range(50))[order])


def test_the_images_of_a_seed_stay_what_they_are():
    # Written down once: whoever changes the pictures changes every result on them.
    x, _ = Scenes().batch(range(20))
    found = hashlib.sha256((x * 255).round().byte().numpy().tobytes()).hexdigest()
    assert found == "8fd0e28c1b703aaa69e65792ea4e2920a58e2fba6883deed0d6a9265e886a5d3"


def test_seeds_and_splits_share_no_image():
    def images(**settings):
        return {image.numpy().tobytes() for image in Scenes(**settings).batch(range(500))[0]}

    test, train, other = images(), images(split="train"), images(seed=1)
    assert len(test) == len(train) == len(other) == 500
    assert not test & train
    assert not test & other


@pytest.mark.parametrize("context", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_the_background_agrees_with_the_class_at_the_stated_rate(context):
    data = Scenes(context=context)
    contexts = data.contexts(range(10_000))
    labels = torch.arange(10_000) % 10
    agreeing = int((contexts == labels).sum())
    assert abs(agreeing - 10_000 * context) <= 4 * (10_000 * context * (1 - context)) ** 0.5
    others = (contexts - labels)[contexts != labels] % 10
    if len(others):  # the other nine are equally likely: no cell further than 5 standard deviations
        share = len(others) / 9
        assert (others.bincount(minlength=10)[1:] - share).abs().max() < 5 * share**0.5


def test_the_context_changes_the_background_and_nothing_else():
    agreeing, free = Scenes(context=1.0), Scenes(context=0.0)
    indices = range(100)
    masks = agreeing.masks(indices)
    assert torch.equal(masks, free.masks(indices))
    a, b = agreeing.batch(indices)[0], free.batch(indices)[0]
    inside = masks[:, None].expand_as(a)
    assert torch.equal(a[inside], b[inside])
    assert (a[~inside] - b[~inside]).abs().mean() > 0.1


def test_a_mask_is_the_shape_that_is_seen():
    data = Scenes()
    x, masks = data.batch(range(300))[0], data.masks(range(300))
    share = masks.float().mean((1, 2))
    assert share.min() > 0.02
    assert share.max() < 0.4
    for image, mask in zip(x, masks, strict=True):  # one colour, but for the noise of ±0.05
        assert image[:, mask].std(1).max() < 0.04
        assert (image[:, mask].mean(1) - image[:, ~mask].mean(1)).norm() > 0.1


def fit(features, labels):
    """Weights of a linear probe, least squares on one-hot labels with a little ridge."""
    a = np.concatenate([features, np.ones((len(features), 1))], 1)
    return np.linalg.solve(a.T @ a + 10 * np.eye(a.shape[1]), a.T @ np.eye(10)[labels])


def accuracy(weights, features, labels):
    scores = np.concatenate([features, np.ones((len(features), 1))], 1) @ weights
    return float((scores.argmax(1) == labels).mean())


def test_the_shape_tells_the_class_and_its_colour_does_not():
    train, test = Scenes(split="train"), Scenes()
    y, held_out = np.arange(4000) % 10, np.arange(1000) % 10
    masks = [data.masks(range(n)).double().numpy() for data, n in ((train, 4000), (test, 1000))]
    # Spectra do not depend on where a shape stands, which a linear probe could not make up for.
    spectra = [np.abs(np.fft.fft2(mask))[:, :17].reshape(len(mask), -1) for mask in masks]
    assert accuracy(fit(spectra[0], y), spectra[1], held_out) > 0.9
    paint = [data._paint(torch.arange(n)) for data, n in ((train, 4000), (test, 1000))]
    assert accuracy(fit(paint[0], y), paint[1], held_out) < 0.15


def mean_colours(data, n):
    """Of the rim, which the shapes leave mostly free: background only."""
    x = data.batch(range(n))[0]
    return torch.cat([x[:, :, :2].mean((2, 3)), x[:, :, -2:].mean((2, 3))], 1).double().numpy()


def test_the_background_alone_predicts_the_class_at_the_stated_rate():
    train, y = Scenes(split="train", context=0.7), np.arange(2000) % 10
    features = mean_colours(train, 2000)
    centroids = np.stack([np.median(features[y == label], 0) for label in range(10)])
    for context in (0.7, 0.1):
        test = mean_colours(Scenes(context=context), 1000)
        nearest = np.linalg.norm(test[:, None] - centroids[None], axis=2).argmin(1)
        agreeing = float((nearest == np.arange(1000) % 10).mean())
        assert abs(agreeing - context) < 0.07


def test_wrong_settings_are_refused():
    for spec, message in (
        ("scenes:n=0", "n must be a whole number of at least 1, not 0"),
        ("scenes:context=1.5", "context=1.5 must be from 0 to 1"),
        ("scenes:split=valid", "split must be one of test, train"),
        ("scenes:contxt=1", "no option called 'contxt'; did you mean context"),
    ):
        with pytest.raises(UsageError, match=message):
            load_dataset(spec)
    with pytest.raises(UsageError, match="scenes has images 0 to 9; there is no 10"):
        load_dataset("scenes:n=10").batch([10])
    with pytest.raises(UsageError, match="there is no -1"):
        Scenes().masks([-1])


def test_the_label_is_the_shape_or_the_context():
    shapes, contexts = Scenes(context=0.5), Scenes(context=0.5, label="context")
    (x, y), (same, z) = shapes.batch(range(100)), contexts.batch(range(100))
    assert torch.equal(x, same)
    assert torch.equal(z, shapes.contexts(range(100)))
    assert not torch.equal(y, z)
    with pytest.raises(UsageError, match="label is shape or context, not 'colour'"):
        Scenes(label="colour")
