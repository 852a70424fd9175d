"""Datasets of arrays in their publishers' formats: read where they are, or fetched into the cache."""

import gzip
import hashlib
import io
import struct
import tarfile

import numpy as np
import pytest
import torch
from scipy.io import savemat

from robustkit import cache
from robustkit.datasets import load_dataset, local
from robustkit.datasets.cifar import CIFAR10, CIFAR100
from robustkit.datasets.corruption_archives import ARCHIVES
from robustkit.datasets.mnist import FASHION, MNIST
from robustkit.datasets.svhn import SVHN
from robustkit.errors import UsageError
from tests.test_datasets import Python2Pickler

ARRAYS = (CIFAR10, CIFAR100, MNIST, FASHION, SVHN)


pytestmark = pytest.mark.usefixtures("no_data_around")


@pytest.fixture
def publisher(monkeypatch):
    """What the publishers' servers hold, by file name, and what was asked for; the cache has tests of its own."""
    held, asked = {}, []

    def fetch(remote):
        asked.append(remote)
        file = cache.place_of(remote)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(held[file.name])
        return file

    monkeypatch.setattr(local, "fetch", fetch)
    return held, asked


def pixels(n, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, 3, 32, 32), dtype=np.uint8)


def python2_pickle(content):
    with io.BytesIO() as stream:
        Python2Pickler(stream, 2).dump(content)
        return stream.getvalue()


def cifar_archive(inner, batches):
    with io.BytesIO() as stream:
        with tarfile.open(fileobj=stream, mode="w:gz") as tar:
            for name, content in {"readme.html": {}, **batches}.items():
                raw = python2_pickle(content)
                entry = tarfile.TarInfo(f"{inner}/{name}")
                entry.size = len(raw)
                tar.addfile(entry, io.BytesIO(raw))
        return stream.getvalue()


def cifar10_archive():
    batches = {"test_batch": {b"data": pixels(3).reshape(3, -1), b"labels": [3, 9, 0]}}
    for i in range(1, 6):
        batches[f"data_batch_{i}"] = {b"data": pixels(2, i).reshape(2, -1), b"labels": [i, 0]}
    return cifar_archive("cifar-10-batches-py", batches)


def test_cifar10_is_fetched_and_read_from_its_archive(publisher):
    held, asked = publisher
    held["cifar-10-python.tar.gz"] = cifar10_archive()
    x, y = load_dataset("cifar10").batch([0, 2])
    assert torch.equal(x, torch.from_numpy(pixels(3)[[0, 2]]).float() / 255)
    assert y.tolist() == [3, 0]
    train = load_dataset("cifar10:split=train")
    assert train.batch(range(10))[1].tolist() == [1, 0, 2, 0, 3, 0, 4, 0, 5, 0]
    assert torch.equal(train.batch([4])[0][0], torch.from_numpy(pixels(2, 3)[0]).float() / 255)
    assert [remote.md5 for remote in asked] == ["c58f30108f718f92721af3b95e74349a"] * 2


def test_cifar100_is_fetched_with_its_fine_labels(publisher):
    held, _ = publisher
    one = {b"data": pixels(1).reshape(1, -1), b"fine_labels": [99], b"coarse_labels": [1]}
    held["cifar-100-python.tar.gz"] = cifar_archive("cifar-100-python", {"test": one})
    assert load_dataset("cifar100").batch([0])[1].tolist() == [99]
    with pytest.raises(UsageError, match="has no cifar-100-python/train; delete it and get it again"):
        load_dataset("cifar100:split=train")


@pytest.mark.parametrize("where", ["data/cifar-10-python.tar.gz", "data/cifar10/cifar-10-python.tar.gz"])
def test_what_lies_at_hand_is_read_and_nothing_is_fetched(tmp_path, publisher, where):
    file = tmp_path / where
    file.parent.mkdir(parents=True)
    file.write_bytes(cifar10_archive())
    assert len(load_dataset("cifar10")) == 3
    assert len(load_dataset(f"cifar10:path={where}")) == 3
    assert publisher[1] == []


def test_an_archive_that_is_cut_short_is_refused(tmp_path):
    (tmp_path / "cifar-10-python.tar.gz").write_bytes(cifar10_archive()[:-3000])
    with pytest.raises(UsageError, match=r"cifar-10-python.tar.gz cannot be read .*get it again"):
        load_dataset("cifar10:path=.,split=train")


def idx(array):
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape) + array.tobytes()


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_mnist_and_fashion_mnist_are_fetched_split_by_split(publisher, name):
    held, asked = publisher
    images = np.arange(2 * 28 * 28).reshape(2, 28, 28).astype(np.uint8)
    for prefix, labels in (("t10k", [4, 2]), ("train", [9, 9])):
        held[f"{prefix}-images-idx3-ubyte.gz"] = gzip.compress(idx(images))
        held[f"{prefix}-labels-idx1-ubyte.gz"] = gzip.compress(idx(np.array(labels, dtype=np.uint8)))
    x, y = load_dataset(name).batch([0, 1])
    assert torch.equal(x, torch.from_numpy(images)[:, None].float() / 255)
    assert y.tolist() == [4, 2]
    assert load_dataset(f"{name}:split=train").batch([0])[1].tolist() == [9]
    assert [remote.place for remote in asked[:2]] == [
        f"datasets/{name}/t10k-images-idx3-ubyte.gz",
        f"datasets/{name}/t10k-labels-idx1-ubyte.gz",
    ]


def test_mnist_files_in_the_data_folder_are_not_taken_for_fashion(tmp_path):
    for folder in ("data", "data/MNIST/raw", "data/mnist"):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
        (tmp_path / folder / "t10k-images-idx3-ubyte").write_bytes(idx(np.zeros((1, 28, 28), np.uint8)))
        (tmp_path / folder / "t10k-labels-idx1-ubyte").write_bytes(idx(np.array([5], np.uint8)))
    assert load_dataset("mnist").batch([0])[1].tolist() == [5]
    with pytest.raises(UsageError, match="fashion-mnist"):
        load_dataset("fashion-mnist")


def mat(n, labels):
    with io.BytesIO() as stream:
        savemat(stream, {"X": pixels(n).transpose(2, 3, 1, 0), "y": np.array(labels, dtype=np.uint8)[:, None]})
        return stream.getvalue()


def test_svhn_calls_the_digit_zero_class_zero(publisher):
    held, asked = publisher
    held["test_32x32.mat"] = mat(3, [1, 10, 9])
    held["extra_32x32.mat"] = mat(1, [10])
    x, y = load_dataset("svhn").batch([0, 1, 2])
    assert torch.equal(x, torch.from_numpy(pixels(3)).float() / 255)
    assert y.tolist() == [1, 0, 9]
    assert len(load_dataset("svhn:split=extra")) == 1
    assert [remote.md5 for remote in asked] == [SVHN.files["test"][0].md5, SVHN.files["extra"][0].md5]


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"<html>", "is no .mat file of SVHN"), (mat(1, [1])[:500], "no .mat file"), (mat(2, [0, 10]), "SVHN's are 1 to")],
)
def test_a_broken_svhn_file_is_refused(tmp_path, content, message):
    (tmp_path / "test_32x32.mat").write_bytes(content)
    with pytest.raises(UsageError, match=message):
        load_dataset("svhn:path=.")


@pytest.mark.parametrize("known", ARRAYS, ids=lambda known: known.name)
def test_offline_says_where_it_was_looked_for_and_where_to_put_it(known, tmp_path):
    split = next(iter(known.files))
    file = tmp_path / "home" / known.files[split][0].place
    with pytest.raises(UsageError) as caught:
        load_dataset(f"{known.name}:split={split}")
    text = str(caught.value)
    assert f"{known.name} ({split}) is not in the folders ROBUSTKIT_DATA, ROBUSTKIT_KIT or ./data" in text
    assert f"by hand at {file}" in text
    assert known.files[split][0].by_hand in text
    assert "\n" not in text


def test_a_given_path_is_not_replaced_by_a_download(publisher):
    for known in ARRAYS:
        with pytest.raises(UsageError, match=r"is not at ./nothing; put .* there"):
            load_dataset(f"{known.name}:path=./nothing")
    assert publisher[1] == []


def test_the_hashes_are_those_that_torchvision_publishes():
    vision = pytest.importorskip("torchvision.datasets")
    once = [files for known in (CIFAR10, CIFAR100, SVHN) for files in known.files.values()]
    md5s = {remote.place.rpartition("/")[2]: remote.md5 for files in once for remote in files}
    for theirs in (vision.CIFAR10, vision.CIFAR100):
        assert md5s.pop(theirs.filename) == theirs.tgz_md5
    for split, (_, name, md5) in vision.SVHN.split_list.items():
        assert split in SVHN.files
        assert md5s.pop(name) == md5
    assert md5s == {}
    for known, theirs in ((MNIST, vision.MNIST), (FASHION, vision.FashionMNIST)):
        ours = {remote.place.rpartition("/")[2]: remote for files in known.files.values() for remote in files}
        assert {name: remote.md5 for name, remote in ours.items()} == dict(theirs.resources)
        assert all(url.rpartition("/")[0] + "/" in theirs.mirrors for r in ours.values() for url in r.urls)


def test_every_file_to_be_fetched_has_a_place_of_its_own_and_a_hash():
    remotes = {r.place: r for known in ARRAYS for files in known.files.values() for r in files}
    remotes |= {remote.place: remote for remote in ARCHIVES.values()}
    assert len(remotes) == 2 + 4 + 4 + 3 + 2
    for place, remote in remotes.items():
        assert len(remote.md5) == len(hashlib.md5(usedforsecurity=False).hexdigest())
        assert place.startswith("datasets/")
        assert remote.by_hand.startswith("http")
