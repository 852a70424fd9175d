import gzip
import pickle
import struct
from typing import ClassVar

import numpy as np
import pytest
import torch

from benchmarks import kit
from robustkit.api import Dataset
from robustkit.datasets import Pair, load_dataset, resolve
from robustkit.errors import UsageError
from tests import needs

X = torch.rand(6, 3, 5, 7, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, 1, 2])


pytestmark = pytest.mark.usefixtures("no_data_around")


def test_digits_have_a_fixed_balanced_test_split():
    test, train = load_dataset("digits"), load_dataset("digits:split=train")
    x, y = test.batch(range(len(test)))
    assert isinstance(test, Dataset)
    assert (len(test), len(train), test.classes) == (355, 1442, 10)
    assert x.shape == (355, 1, 8, 8)
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)
    assert x.min() == 0
    assert x.max() == 1
    assert y[:20].tolist() == [5, 0, 9, 8, 7, 1, 2, 6, 3, 4, 0, 2, 6, 3, 1, 7, 5, 9, 4, 8]
    assert y.bincount().min() >= 34
    assert y[:100].bincount().min() >= 7


def test_no_image_is_in_both_splits_of_digits():
    test, train = load_dataset("digits"), load_dataset("digits:split=train")
    rows = {image.numpy().tobytes() for image in test.batch(range(len(test)))[0]}
    assert not rows & {image.numpy().tobytes() for image in train.batch(range(len(train)))[0]}


def test_a_batch_is_the_images_at_the_indices_in_their_order():
    x, y = Pair(X, Y).batch([4, 1])
    assert torch.equal(x, X[[4, 1]])
    assert y.tolist() == [1, 1]
    assert Pair(X, Y).batch([])[0].shape == (0, 3, 5, 7)


@pytest.mark.parametrize("index", [6, -1])
def test_an_index_outside_the_dataset_is_refused(index):
    with pytest.raises(UsageError, match=f"pair has images 0 to 5; there is no {index}"):
        Pair(X, Y).batch([0, index])


def test_changing_a_batch_does_not_change_the_dataset():
    data = Pair(X.clone(), Y)
    data.batch([0])[0].zero_()
    assert torch.equal(data.batch([0])[0], X[:1])


@pytest.mark.parametrize("as_array", [False, True])
def test_bytes_of_any_layout_are_divided_by_255(as_array):
    image = torch.arange(6 * 3 * 5 * 7).reshape(6, 3, 5, 7).remainder(256).to(torch.uint8)
    want = image.float() / 255
    for layout, wanted in (
        (image, want),
        (image.permute(0, 2, 3, 1), want),
        (image[:, 0], want[:, :1]),
        (image[:, :1].permute(0, 2, 3, 1), want[:, :1]),
    ):
        assert torch.equal(Pair(layout.numpy() if as_array else layout, Y).batch(range(6))[0], wanted)


def test_float64_images_and_small_integer_labels_become_float32_and_int64():
    x, y = Pair(X.double().numpy(), Y.numpy().astype(np.uint8)).batch(range(6))
    assert (x.dtype, y.dtype) == (torch.float32, torch.int64)


def test_a_read_only_array_is_accepted():
    pixels = X.numpy().copy()
    pixels.flags.writeable = False
    assert len(Pair(pixels, Y)) == 6


def with_nan():
    x = X.clone()
    x[2, 0, 0, 0] = float("nan")
    return x


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X * 255, Y, r"images go from .* to 25.*; they must be in \[0,1\]: divide by 255"),
        (X * 2 - 1, Y, r"images go from -0.9.* undo the normalisation"),
        (with_nan(), Y, "1 values of the images are NaN or infinite"),
        (X.permute(0, 2, 3, 1), Y, r"shape \(6, 5, 7, 3\) look like NHWC; give NCHW: torch's x.permute\(0, 3, 1, 2\)"),
        (X[:, 0], Y, r"no channel axis; give NCHW: x\[:, None\]"),
        (X.flatten(1), Y, r"images of shape \(6, 105\); they must be \(N, C, H, W\)"),
        (torch.rand(6, 9, 9, 9), Y, "with 1 to 4 channels"),
        (X.long(), Y, r"images are torch.int64; give floats in \[0,1\]"),
        (X[:0], Y[:0], "no images"),
        (X[:4], Y, "4 images but 6 labels"),
        (X, Y - 1, "labels go from -1 to 1; they must be 0 to 2, since there are 3 classes"),
        (X, Y + 1, "labels go from 1 to 3; they must be 0 to 2"),
        (X, Y + 0.7, "labels are torch.float32 and not whole: that of image 0 is 0.7; give class numbers"),
        (X, torch.eye(6), "labels go from 0 to 5; they must be 0 to 2"),
        (X, torch.full((6, 3), 1 / 3), r"nor one-hot: that of image 0 is \[0.333333, 0.333333, 0.333333\]; .*argmax"),
        (X, torch.eye(3)[Y][:, None], r"labels of shape \(6, 1, 3\); they must be one number an image"),
        (X, Y == 0, "labels are torch.bool; they must be whole numbers"),
        (X.tolist(), Y, "x is of type list; give a torch tensor or a numpy array"),
        (X, np.array(list("abcabc")), "y holds <U1, not numbers"),
    ],
)
def test_what_is_not_images_in_the_unit_box_with_labels_is_refused(x, y, message):
    with pytest.raises(UsageError, match=message) as caught:
        Pair(x, y, "mine", classes=3)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("mine: ")


@pytest.mark.parametrize("spec", ["./some.npz", "./some.npz:classes=10"])
def test_an_npz_holds_images_and_labels(tmp_path, spec):
    np.savez(tmp_path / "some.npz", x=X.numpy(), y=Y.numpy())
    data = load_dataset(spec)
    assert isinstance(data, Dataset)
    assert (len(data), data.name, data.classes) == (6, "some.npz", 10 if "classes" in spec else 0)
    assert torch.equal(data.batch([5])[0], X[5:])


def test_an_npz_that_cannot_be_read_says_why(tmp_path):
    np.savez(tmp_path / "keys.npz", images=X.numpy(), labels=Y.numpy())
    np.savez(tmp_path / "no_y.npz", x=X.numpy())
    np.savez(tmp_path / "objects.npz", x=np.array([{}, []], dtype=object), y=Y.numpy())
    np.savez(tmp_path / "labels.npz", x=X.numpy(), y=Y.numpy())
    np.save(tmp_path / "single.npy", X.numpy())
    (tmp_path / "page.npz").write_text("<html>not found</html>")
    for spec, message in (
        ("./keys.npz", "has no x and no y; it holds images, labels; name the arrays x and y"),
        ("./no_y.npz", "has no y; it holds x"),
        ("./objects.npz", "cannot be read: .*allow_pickle"),
        ("./labels.npz:classes=2", "labels go from 0 to 2; they must be 0 to 1"),
        ("./labels.npz:clases=2", "no option called 'clases'; did you mean classes"),
        ("./single.npy", "is no .npz file"),
        ("./page.npz", "is no .npz file"),
        ("./absent.npz", "there is no file './absent.npz'"),
    ):
        with pytest.raises(UsageError, match=message):
            load_dataset(spec)


def test_a_wrong_name_says_which_ones_there_are(tmp_path):
    (tmp_path / "mine.npz").touch()
    for spec, message in (
        ("cifar", "no dataset called 'cifar'; did you mean cifar10"),
        ("digits:splits=test", "no option called 'splits'; did you mean split"),
        ("digits:split=valid", "split must be one of test, train"),
        ("mine.npz", "to read the file, write ./mine.npz"),
        ("torchvision/CIFAR10", "no dataset source called 'torchvision'. There are: .*folder, hf"),
        ("file", "'file' alone names no data"),
    ):
        with pytest.raises(UsageError, match=message):
            load_dataset(spec)


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist"])
def test_absent_data_says_where_it_was_looked_for_and_how_to_get_it(name):
    with pytest.raises(UsageError, match=rf"{name} \(test\) is not in the folders ROBUSTKIT_DATA, .*\./data"):
        len(load_dataset(name))
    with pytest.raises(UsageError, match=rf"{name} \(train\) is not at ./nothing"):
        len(load_dataset(f"{name}:path=./nothing,split=train"))


def cifar_bytes(n):
    return np.arange(n * 3072).reshape(n, 3072).astype(np.uint8)


class Python2Pickler(pickle._Pickler):
    """Writes text and bytes as Python 2 did, which is how the original CIFAR files are."""

    def save_text(self, value):
        raw = value if isinstance(value, bytes) else value.encode("latin1")
        self.write(pickle.BINSTRING + struct.pack("<i", len(raw)) + raw)

    dispatch: ClassVar = {**pickle._Pickler.dispatch, str: save_text, bytes: save_text}


def write_batch(file, content):
    file.parent.mkdir(exist_ok=True)
    with file.open("wb") as stream:
        Python2Pickler(stream, 2).dump(content)


@pytest.mark.parametrize("path", ["root", "root/cifar-10-batches-py"])
def test_the_original_cifar10_batches_are_read(tmp_path, path):
    folder = tmp_path / "root" / "cifar-10-batches-py"
    folder.parent.mkdir()
    write_batch(folder / "test_batch", {"data": cifar_bytes(2), "labels": [3, 9], "filenames": ["a.png", "b.png"]})
    for i in range(1, 6):
        write_batch(folder / f"data_batch_{i}", {"data": cifar_bytes(1), "labels": [i]})
    x, y = load_dataset(f"cifar10:path={path}").batch([0, 1])
    assert torch.equal(x, torch.from_numpy(cifar_bytes(2)).reshape(2, 3, 32, 32).float() / 255)
    assert y.tolist() == [3, 9]
    assert load_dataset(f"cifar10:path={path},split=train").batch(range(5))[1].tolist() == [1, 2, 3, 4, 5]


def test_the_original_cifar100_files_are_read_from_the_data_folder(tmp_path, monkeypatch):
    write_batch(tmp_path / "cifar-100-python" / "test", {"data": cifar_bytes(1), "fine_labels": [99]})
    monkeypatch.setenv("ROBUSTKIT_DATA", str(tmp_path))
    assert load_dataset("cifar100").batch([0])[1].tolist() == [99]


class Payload:
    def __reduce__(self):
        return eval, ("1/0",)


def test_a_batch_that_would_run_code_is_refused(tmp_path):
    file = tmp_path / "cifar-10-batches-py" / "test_batch"
    file.parent.mkdir()
    file.write_bytes(pickle.dumps({b"data": Payload(), b"labels": [1]}))
    with pytest.raises(UsageError, match=r"asks for builtins.eval, which no CIFAR batch needs"):
        len(load_dataset("cifar10:path=."))


@pytest.mark.parametrize("content", [b"", b"<html>", pickle.dumps({b"data": 1}), pickle.dumps([1])])
def test_a_broken_batch_is_refused(tmp_path, content):
    (tmp_path / "test_batch").write_bytes(content)
    with pytest.raises(UsageError, match="is no batch of the original CIFAR"):
        len(load_dataset("cifar10:path=."))


def idx(array):
    return b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}i", *array.shape) + array.tobytes()


@pytest.mark.parametrize("zipped", [False, True])
def test_the_original_mnist_files_are_read(tmp_path, zipped):
    folder = tmp_path / "data" / "MNIST" / "raw"
    folder.mkdir(parents=True)
    pixels = np.arange(2 * 28 * 28).reshape(2, 28, 28).astype(np.uint8)
    for name, array in (("images-idx3", pixels), ("labels-idx1", np.array([4, 2], dtype=np.uint8))):
        raw = idx(array)
        file = folder / f"t10k-{name}-ubyte{'.gz' if zipped else ''}"
        file.write_bytes(gzip.compress(raw) if zipped else raw)
    x, y = load_dataset("mnist").batch([0, 1])
    assert torch.equal(x, torch.from_numpy(pixels).unsqueeze(1).float() / 255)
    assert y.tolist() == [4, 2]


@pytest.mark.parametrize("content", [b"", b"<html>", b"\0\0\x08\x03\0\0", idx(np.zeros((2, 28, 28), np.uint8))[:-1]])
def test_a_broken_mnist_file_is_refused(tmp_path, content):
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(content)
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(np.array([4, 2], dtype=np.uint8)))
    with pytest.raises(UsageError, match="is no idx file"):
        len(load_dataset("mnist:path=."))


def test_an_npz_serves_the_split_that_it_is(tmp_path):
    x, y = np.zeros((2, 28, 28), np.uint8), np.array([0, 1])
    np.savez(tmp_path / "keras.npz", x_train=x, y_train=y + 1, x_test=x, y_test=y)
    np.savez(tmp_path / "mnist_train.npz", x=x, y=y)
    np.savez(tmp_path / "some.npz", x=x, y=y)
    assert load_dataset("mnist:path=./keras.npz").batch([0])[1].tolist() == [0]
    assert load_dataset("mnist:path=./keras.npz,split=train").batch([0])[1].tolist() == [1]
    assert len(load_dataset("mnist:path=.,split=train")) == 2
    with pytest.raises(UsageError, match=r"is the train split by its name; add split=train"):
        len(load_dataset("mnist:path=./mnist_train.npz"))
    with pytest.raises(UsageError, match="does not say that it is training data"):
        len(load_dataset("mnist:path=./some.npz,split=train"))


MODULE = """
import torch

NUMBER = 3

def pair(n: int, scale: float = 1.0):
    return scale * torch.ones(n, 1, 4, 4), torch.arange(n)

def wrong():
    return 5
"""


def test_a_callable_in_the_current_folder_makes_a_dataset(tmp_path):
    (tmp_path / "my_images_here.py").write_text(MODULE)
    data = load_dataset("python/my_images_here.pair:n=4,scale=1/2")
    assert (len(data), data.classes) == (4, 0)
    assert data.batch([1])[0].unique().tolist() == [0.5]
    for spec, message in (
        ("python/my_images_here.wrong", "returned int; it must return a Dataset or an"),
        ("python/my_images_here.pair", "dataset my_images_here.pair needs n; append :n=…"),
        ("python/my_images_here.pair:n=two", "n must be a whole number, not 'two'"),
        ("python/my_images_here.pair:n=1,size=2", "no option called 'size'.* There are: n, scale"),
        ("python/my_images_here.pair:n=4,scale=9", "images go from 9 to 9.*divide by 255"),
    ):
        with pytest.raises(UsageError, match=message):
            load_dataset(spec)


def test_data_may_be_a_spec_a_dataset_a_pair_or_a_torch_dataset():
    pair = Pair(X, Y)
    assert resolve(pair) is pair
    assert resolve("digits").name == "digits"
    for data in ((X, Y), (X.numpy(), Y.numpy()), torch.utils.data.TensorDataset(X, Y)):
        x, y = resolve(data).batch([5, 0])
        assert torch.equal(x, X[[5, 0]])
        assert y.tolist() == [2, 0]
    with pytest.raises(UsageError, match="data is of type int; give a spec such as 'digits'"):
        resolve(3)


@needs.kit
def test_the_kit_is_found_by_its_variable_and_by_path(monkeypatch):
    monkeypatch.setenv("ROBUSTKIT_KIT", str(kit.ROOT))
    indices = [0, 17, 9999]
    for spec, wanted in (
        ("cifar10", kit.cifar10(indices)),
        (f"mnist:path={kit.ROOT}/mnist_test.npz", kit.mnist(indices)),
    ):
        data = load_dataset(spec)
        x, y = data.batch(indices)
        assert torch.equal(x, wanted[0])
        assert torch.equal(y, wanted[1])
        assert len(data) == 10000
