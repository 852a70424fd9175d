"""Corrupted images, made here and in miniatures of the published archives."""

import io
import itertools
import sys
import tarfile

import numpy as np
import pytest
import torch

from robustkit.api import Dataset
from robustkit.datasets import load_dataset
from robustkit.errors import UsageError

pytest.importorskip("PIL")
pytest.importorskip("kornia")
pytest.importorskip("torchvision")

from robustkit.corruptions import KINDS, corrupt

RANDOM = ("gaussian-noise", "shot-noise", "impulse-noise", "speckle-noise", "motion-blur", "elastic-transform")


pytestmark = pytest.mark.usefixtures("no_data_around")


def scenes(n=6):
    return load_dataset("scenes").batch(range(n))[0]


# ---- images


@pytest.mark.parametrize("kind", KINDS)
def test_each_severity_moves_an_image_further(kind):
    pytest.importorskip("foolbox")
    for name, n in (("samples/cifar10", 8), ("samples/imagenet", 1)):
        x, _ = load_dataset(name).batch(range(n))
        made = [torch.stack([corrupt(image, kind, s, index=i) for i, image in enumerate(x)]) for s in range(1, 6)]
        distances = [float((m - x).flatten(1).norm(dim=1).mean()) for m in made]
        assert distances[0] > 0.3
        assert all(b > 1.02 * a for a, b in itertools.pairwise(distances)), distances
        for m in made:
            assert (m.dtype, m.shape) == (torch.float32, x.shape)
            assert m.min() >= 0
            assert m.max() <= 1
            assert torch.equal((m * 255).round() / 255, m)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "saturate"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 20, 31)])
def test_grey_and_odd_images_are_corrupted_too(kind, shape):
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    made = corrupt(x, kind, 5)
    assert made.shape == shape
    assert (made - x).abs().max() > 0.02


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_does_not_depend_on_its_batch(kind):
    data = load_dataset(f"corrupted/(scenes:n=9):kind={kind},severity=3")
    assert isinstance(data, Dataset)
    together, labels = data.batch([0, 3, 5, 8])
    for row, index in enumerate((0, 3, 5, 8)):
        alone, label = data.batch([index])
        assert torch.equal(alone[0], together[row])
        assert int(label[0]) == int(labels[row]) == index
    assert data.batch([])[1].shape == (0,)


@pytest.mark.parametrize("kind", KINDS)
def test_noise_belongs_to_the_sample_and_the_seed(kind):
    image = scenes(1)[0]
    same = torch.equal(corrupt(image, kind, 3, index=0), corrupt(image, kind, 3, index=1))
    seeded = torch.equal(corrupt(image, kind, 3, seed=0), corrupt(image, kind, 3, seed=1))
    assert same == seeded == (kind not in RANDOM)
    before = torch.get_rng_state(), np.random.get_state()[1].tolist()
    corrupt(image, kind, 3)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == np.random.get_state()[1].tolist()


def test_noises_have_their_moments():
    grey = torch.full((3, 64, 64), 0.5)
    noise = corrupt(grey, "gaussian-noise", 5) - grey
    assert abs(float(noise.mean())) < 0.004
    assert float(noise.std()) == pytest.approx(0.10, rel=0.03)
    shot = corrupt(grey, "shot-noise", 3)  # Poisson counts of mean 50 for 100 photons
    assert float(shot.mean()) == pytest.approx(0.5, abs=0.004)
    assert float(shot.std()) == pytest.approx((0.5 / 100) ** 0.5, rel=0.03)
    impulse = corrupt(grey, "impulse-noise", 5)
    assert float((impulse == 1).float().mean()) == pytest.approx(0.035, abs=0.006)
    assert float((impulse == 0).float().mean()) == pytest.approx(0.035, abs=0.006)
    speckle = corrupt(grey, "speckle-noise", 5) - grey
    assert float(speckle.std()) == pytest.approx(0.5 * 0.2, rel=0.03)


def test_a_blur_keeps_what_is_even_and_the_mean():
    flat = torch.full((3, 32, 32), 0.4)
    spot = torch.zeros(1, 33, 33)
    spot[0, 16, 16] = 1
    for kind in ("gaussian-blur", "defocus-blur", "motion-blur", "zoom-blur"):
        assert (corrupt(flat, kind, 5) - flat).abs()[:, 8:-8, 8:-8].max() < 0.5 / 255 + 1e-6
    for kind in ("gaussian-blur", "defocus-blur", "motion-blur"):
        blurred = corrupt(spot, kind, 5)
        assert float(blurred.sum()) == pytest.approx(1, abs=0.06)  # but for the rounding to 8 bits
        assert 0.01 < blurred.max() < 0.5


def test_contrast_and_brightness_are_what_their_papers_say():
    image = scenes(1)[0]
    mean = image.mean((1, 2), keepdim=True)
    assert torch.allclose(corrupt(image, "contrast", 2), mean + 0.5 * (image - mean), atol=0.5 / 255 + 1e-6)
    value = image.max(0).values
    assert torch.allclose(
        corrupt(image, "brightness", 4).max(0).values, (value + 0.2).clamp(max=1), atol=0.5 / 255 + 1e-5
    )


def test_short_and_underscored_names_are_understood():
    image = scenes(1)[0]
    for given, kind in (
        ("jpeg", "jpeg-compression"),
        ("elastic", "elastic-transform"),
        ("Gaussian_Blur", "gaussian-blur"),
    ):
        assert torch.equal(corrupt(image, given, 2), corrupt(image, kind, 2))


def test_what_cannot_be_corrupted_is_refused():
    for spec, message in (
        (
            "corrupted/(scenes):kind=gaussian-blu,severity=1",
            "no corruption called 'gaussian-blu'; did you mean gaussian-",
        ),
        ("corrupted/(scenes):kind=jpeg,severity=6", "severity 6 must be 1, 2, 3, 4 or 5"),
        ("corrupted/(scenes):kind=jpeg", "severity 0 must be"),
        ("corrupted/(scenes):level=1", "no option called 'level'"),
        ("corrupted/(nothing):kind=jpeg,severity=1", "no dataset called 'nothing'"),
        ("corrupted", r"'corrupted' alone names no data; write corrupted/\(cifar10\)"),
    ):
        with pytest.raises(UsageError, match=message):
            load_dataset(spec)
    with pytest.raises(UsageError, match="choose one: kind=gaussian-blur"):
        load_dataset("corrupted/(scenes)").batch([0])
    with pytest.raises(UsageError, match=r"saturate needs colour images \(3 channels\)"):
        load_dataset("corrupted/(digits):kind=saturate,severity=1").batch([0])
    with pytest.raises(UsageError, match="2 channels are neither grey nor colour"):
        corrupt(torch.rand(2, 8, 8), "jpeg", 1)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "kornia.filters", None)
    with pytest.raises(
        UsageError, match=r"gaussian-blur needs 'kornia.filters'.*pip install 'robustkit-bench\[data\]'"
    ):
        corrupt(torch.rand(3, 32, 32), "gaussian-blur", 1)


# ---- archives


N = 4  # images a severity


def archive_arrays():
    """Image i under a kind at severity s is filled with a number that tells all three."""
    severities, images = np.repeat(np.arange(1, 6), N), np.tile(np.arange(N), 5)
    arrays = {"labels": (images % 3).astype(np.int64)}
    for k, kind in enumerate(("gaussian_noise", "jpeg_compression", "spatter")):
        fill = (100 * (k == 1) + 10 * severities + images).astype(np.uint8)
        arrays[kind] = np.broadcast_to(fill[:, None, None, None], (5 * N, 32, 32, 3)).copy()
    return arrays


def write_archive(root, kind):
    arrays = archive_arrays()
    if kind == "folder":
        (root / "CIFAR-10-C").mkdir(parents=True)
        for name, array in arrays.items():
            np.save(root / "CIFAR-10-C" / f"{name}.npy", array)
        return
    root.mkdir(parents=True, exist_ok=True)
    with tarfile.open(root / "CIFAR-10-C.tar", "w") as tar:
        for name, array in arrays.items():
            with io.BytesIO() as stream:
                np.save(stream, array)
                entry = tarfile.TarInfo(f"CIFAR-10-C/{name}.npy")
                entry.size = stream.tell()
                stream.seek(0)
                tar.addfile(entry, stream)


@pytest.mark.parametrize("kind", ["folder", "archive"])
@pytest.mark.parametrize("path", ["", ",path=./data"])
def test_cifar10_c_gives_the_slice_of_a_severity(tmp_path, kind, path):
    write_archive(tmp_path / "data", kind)
    data = load_dataset(f"cifar10-c:kind=jpeg,severity=3{path}")
    assert isinstance(data, Dataset)
    assert (len(data), data.classes, data.name) == (N, 10, "cifar10-c")
    x, y = data.batch([3, 1])
    assert (x.shape, x.dtype) == ((2, 3, 32, 32), torch.float32)
    assert [(round(float(v) * 255)) for v in x.flatten(1).mean(1)] == [133, 131]
    assert y.tolist() == [0, 1]
    assert load_dataset(f"cifar10-c:kind=gaussian_noise,severity=5{path}").batch([0])[0][0, 0, 0, 0] * 255 == 50


def test_a_wrong_archive_is_refused(tmp_path):
    write_archive(tmp_path / "good", "folder")
    (tmp_path / "cut").mkdir()
    (tmp_path / "cut" / "CIFAR-10-C.tar").write_bytes(b"<html>")
    root = tmp_path / "odd" / "CIFAR-10-C"
    root.mkdir(parents=True)
    np.save(root / "labels.npy", np.zeros(10, np.int64))
    np.save(root / "fog.npy", np.zeros((9, 32, 32, 3), np.uint8))
    np.save(root / "snow.npy", np.array([{}] * 10, dtype=object))
    for spec, message in (
        ("cifar10-c", "cifar10-c is not in the folders .*offline"),
        ("cifar10-c:path=./nothing", "give the folder CIFAR-10-C with labels.npy, or CIFAR-10-C.tar"),
        ("cifar10-c:path=./cut", r"CIFAR-10-C.tar cannot be read .*get it again"),
        ("cifar10-c:path=./good,kind=fog,severity=1", "no corruption called 'fog'.* There are: gaussian-noise, jpeg"),
        ("cifar10-c:path=./good,kind=spatter", "severity 0 must be"),
    ):
        with pytest.raises(UsageError, match=message):
            load_dataset(spec)
    for kind, message in (("fog", "not bytes of 10×32×32×3"), ("snow", "holds objects, not numbers")):
        with pytest.raises(UsageError, match=message):
            load_dataset(f"cifar10-c:path=./odd,kind={kind},severity=1").batch([0])
    with pytest.raises(UsageError, match="cifar10-c: choose one: kind=gaussian-noise,severity=3; there are: gaussian-"):
        load_dataset("cifar10-c:path=./good").batch([0])


def imagenet_c(root, kinds, severities=(1, 2, 3, 4, 5), wnids=("n01440764", "n15075141")):
    from PIL import Image

    for k, kind in enumerate(kinds):
        for severity in severities:
            for w, wnid in enumerate(wnids):
                folder = root / kind / str(severity) / wnid
                folder.mkdir(parents=True)
                Image.new("RGB", (224, 224), (40 * k, 40 * severity, 200 * w)).save(folder / f"ILSVRC2012_val_{w}.png")


@pytest.mark.parametrize("group", ["", "noise/"])
def test_imagenet_c_is_read_with_and_without_its_groups(tmp_path, group):
    pytest.importorskip("timm")
    imagenet_c(tmp_path / "data" / "ImageNet-C", [f"{group}gaussian_noise", f"{group}shot_noise"])
    data = load_dataset("imagenet-c:kind=shot-noise,severity=2")
    assert (len(data), data.classes, data.labels.tolist()) == (2, 1000, [0, 999])
    x, _ = data.batch([1])
    assert (x[0, :, 100, 100] * 255).round().tolist() == [40, 80, 200]
    whole = load_dataset("imagenet-c")
    assert whole.kinds == ("gaussian-noise", "shot-noise")
    assert len(whole) == 2
    with pytest.raises(UsageError, match="imagenet-c: choose one"):
        whole.batch([0])
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no corruptions"):
        load_dataset("imagenet-c:path=./empty")


@pytest.mark.parametrize("shape", [(3, 1, 8), (1, 8, 1), (3, 1, 1), (3, 1, 40), (3, 5, 7)])
def test_a_kind_works_on_an_image_of_one_pixel_height(shape):
    x = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    for kind in KINDS:
        if kind == "saturate" and shape[0] == 1:
            continue
        for severity in (1, 5):
            made = corrupt(x, kind, severity)
            assert made.shape == x.shape
            assert made.isfinite().all()
    # Along the one axis that there is, a blur is what it is on a wide image whose rows are all alike.
    if 1 in shape[1:]:
        wide = x.expand(shape[0], *(max(shape[1:]) if side == 1 else side for side in shape[1:]))
        row = corrupt(wide, "gaussian-blur", 5)[:, : shape[1], : shape[2]]
        assert torch.allclose(corrupt(x, "gaussian-blur", 5), row, atol=1 / 255 + 1e-6)
