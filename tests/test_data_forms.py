"""Data as people have them: batches of a loader, items of every form, labels of every form, tables of Hugging Face."""

import numpy as np
import pytest
import torch
from torch.utils import data as torch_data

import robustkit
from robustkit.datasets import Pair, load_dataset, resolve
from robustkit.errors import UsageError

pytestmark = pytest.mark.usefixtures("no_data_around")
X = torch.rand(6, 3, 5, 7, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, 1, 2])
PAIR = torch_data.TensorDataset(X, Y)


class Items(torch_data.Dataset):
    """Items made by a function of their index."""

    def __init__(self, item, classes=None, n=6):
        self.item, self.classes, self.n = item, classes, n

    def __len__(self):
        return self.n

    def __getitem__(self, i):
        return self.item(i)


def pillow(i):
    from PIL import Image

    return Image.fromarray((X[i].permute(1, 2, 0).numpy() * 255).round().astype(np.uint8))


class Frame:
    """What pandas, JAX and TensorFlow share: `__array__`."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.values)


@pytest.mark.parametrize(
    "data",
    [
        next(iter(torch_data.DataLoader(PAIR, batch_size=6))),
        [X, Y],
        [X.numpy(), Y.numpy()],
        (X, Y.tolist()),
        (X, tuple(Y.tolist())),
        (Frame(X.numpy()), Frame(Y.numpy())),
        (X, Y[:, None]),
        (X, Y.double()),
        (X, torch.eye(3)[Y]),
        (X, np.eye(3, dtype=np.uint8)[Y]),
        (X.double().numpy().astype(np.longdouble), Y),
        {"image": X, "label": Y},
        {"pixel_values": X, "labels": Y},
        PAIR,
        list(PAIR),
        torch_data.Subset(torch_data.TensorDataset(X.flip(0), Y.flip(0)), range(5, -1, -1)),
        Items(lambda i: {"image": X[i], "label": int(Y[i])}),
        Items(lambda i: {"img": X[i].numpy(), "target": Y[i], "path": f"{i}.png"}),
        Items(lambda i: (X[i], Y[i], i)),
        Items(lambda i: (X[i], int(Y[i]), torch.tensor(i))),
        Items(lambda i: (X[i], Y[i], f"{i}.png", {"site": 3})),
        Items(lambda i: (X[i], Y[i], np.zeros(4))),
        Items(lambda i: (X[i], np.array([Y[i]]))),
        Items(lambda i: (X[i], float(Y[i]))),
        Items(lambda i: [X[i], torch.eye(3)[Y[i]]]),
        Items(lambda i: (X[i], ["cat", "dog", "fox"][Y[i]]), classes=["cat", "dog", "fox"]),
        Items(lambda i: (X[i], Y[i]), classes=3),
        Items(lambda i: (X[i], Y[i]), classes=lambda: 3),
        Items(lambda i: (X[i], Y[i]), classes=np.array(["cat", "dog", "fox"])),
    ],
    ids=lambda data: type(data).__name__,
)
def test_whatever_has_one_meaning_is_read(data):
    x, y = resolve(data).batch([5, 0])
    assert torch.allclose(x, X[[5, 0]], atol=1e-7)
    assert (x.dtype, y.dtype, y.tolist()) == (torch.float32, torch.int64, [2, 0])


def test_images_of_pillow_and_bytes_are_divided_by_255():
    pytest.importorskip("PIL")
    levels = (X * 255).round() / 255
    for item in (lambda i: (pillow(i), int(Y[i])), lambda i: ((X[i] * 255).round().byte(), Y[i])):
        assert torch.equal(resolve(Items(item)).batch([5, 0])[0], levels[[5, 0]])
    greys = resolve(Items(lambda i: (pillow(i).convert("L"), 1)))
    assert greys.batch([0])[0].shape == (1, 1, 5, 7)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ((X, [0, 1, 2, 0, 1, 3.7]), r"labels are torch.float64 and not whole: that of image 5 is 3.7"),
        (Items(lambda i: (X[i], 3.7 if i == 4 else int(Y[i]))), "that of image 4 is 3.7; give class numbers"),
        (Items(lambda i: (X[i], torch.full((3,), 1 / 3))), r"that of image 1 is \[0.333333, 0.333333, 0.333333\]; "),
        (Items(lambda i: (X[i], torch.tensor([0.0, 1.0, 1.0]))), r"that of image 1 is \[0, 1, 1\]; give one"),
        (Items(lambda i: (X[i], "cat")), "the label of item 1 is 'cat'; it must be a class number"),
        (Items(lambda i: (X[i], "wolf"), classes=["cat"]), r"it must be one of the dataset's classes \(cat …\)"),
        (Items(lambda i: (X[i], None)), "the label of item 1 is of type NoneType; give a class number"),
        (Items(lambda i: (X[i], Y[i], 7)), r"which part of item 1 is its label\? \(image, tensor\(1\), 7\); give"),
        (Items(lambda i: X[i]), r"item 1 is of type Tensor; it must be \(image, label\), or a dict"),
        (Items(lambda i: {"image": X[i], "caption": "a cat"}), "a dict of image, caption; which is the label"),
        (Items(lambda i: {"image": X[i], "x": X[i], "y": 1}), "dict of image, x, y; which is the image"),
        (Items(lambda i: ("1.png", 1)), "the image of item 1 is of type str; give a tensor or an image of Pillow's"),
        (Items(lambda i: (X[i][:, : 5 - i % 2], 1)),
         r"the image of item 1 is \[3, 4, 7\], that of item 4 \[3, 5, 7\]; bring them to one size"),
        (torch_data.DataLoader(PAIR), "data is a DataLoader; give the dataset behind it, loader.dataset, or one batch"),
        (next(iter(torch_data.DataLoader(Items(lambda i: (X[i], Y[i], i)), batch_size=6))), "a batch of 3 parts; give"),
        ({"train": PAIR, "test": PAIR}, "a dict of train, test; which is the image"),
        ((X, object()), "y is of type object"),
        ((X, [[0], [1, 2]]), "y is no array"),
        (3, "data is of type int; give a spec such as 'digits'"),
    ],
)  # fmt: skip
def test_what_has_none_names_the_item_and_what_to_do(data, message):
    with pytest.raises(UsageError, match=message) as caught:
        resolve(data).batch([1, 4])
    assert "\n" not in str(caught.value)


def test_one_image_is_told_to_get_a_batch_axis():
    for x, y, advice in (
        (X[0], Y[:1], r"one image of shape \(3, 5, 7\) has no batch axis; give NCHW: x\[None\]$"),
        ((X[0] * 255).byte(), [1], r"x\[None\]$"),
        (X[0].permute(1, 2, 0), Y[:1], r"x\.permute\(2, 0, 1\)\[None\]$"),
        (X[:, 0], Y, r"images of shape \(6, 5, 7\) have no channel axis; give NCHW: x\[:, None\]$"),
    ):
        with pytest.raises(UsageError, match=advice):
            Pair(x, y)
    assert Pair((X[:1, 0] * 255).byte(), [1]).batch([0])[0].shape == (1, 1, 5, 7)


def test_a_rounding_error_outside_the_unit_range_is_shown_and_clamped():
    over, under = X.clone(), X.clone()
    over[0, 0, 0, 0], under[0, 0, 0, 0] = 1.0000001192092896, -1e-8
    for x, shown in ((over, r"to 1\.00000012; .*x\.clamp\(0, 1\) mends"), (under, r"from -9\.99999994e-09 to .*clamp")):
        with pytest.raises(UsageError, match=shown):
            Pair(x, Y)
        assert len(Pair(x.clamp(0, 1), Y)) == 6
    with pytest.raises(UsageError, match="undo the normalisation"):
        Pair((X - 0.5) / 0.5, Y)


def test_integers_wider_than_bytes_are_told_their_divisor():
    with pytest.raises(
        UsageError, match=r"images are torch.uint16; give floats in \[0,1\], 16-bit ones divided by 65535"
    ):
        Pair((X.numpy() * 65535).astype(np.uint16), Y)


def test_the_number_of_classes_of_an_own_dataset_is_a_number():
    class Own:
        name, classes = "own", 3

        def __len__(self):
            return 6

        def batch(self, indices):
            return X[list(indices)], Y[list(indices)]

    for fine in (3, np.int64(3), 0, None):
        own = Own()
        own.classes = fine
        assert resolve(own) is own
    for wrong in (lambda: 3, ["cat", "dog", "fox"], 3.5):
        own = Own()
        own.classes = wrong
        with pytest.raises(UsageError, match=r"own: classes is of type .*; it must be the number of classes"):
            resolve(own)


def test_a_table_of_hugging_face_is_data():
    datasets = pytest.importorskip("datasets")
    pytest.importorskip("PIL")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"])})
    table = datasets.Dataset.from_dict({"image": [pillow(i) for i in range(6)], "label": Y.tolist()}, features)
    levels = (X * 255).round() / 255
    for data, classes in ((table, 3), (table.with_format("torch"), 0)):
        found = resolve(data)
        x, y = found.batch([5, 0])
        assert torch.equal(x, levels[[5, 0]])
        assert (y.tolist(), found.classes) == ([2, 0], classes)
    with pytest.raises(UsageError, match="the data are 2 splits: train, test; give one of them"):
        resolve(datasets.DatasetDict({"train": table, "test": table}))
    with pytest.raises(UsageError, match="a stream of Hugging Face; load it without streaming=True"):
        resolve(table.to_iterable_dataset())
    words = table.remove_columns("label").add_column("label", list("abcabc"))
    with pytest.raises(UsageError, match=r"holds no class numbers: row 0 has 'a'; .*class_encode_column\('label'\)"):
        resolve(words)
    paths = table.remove_columns("image").add_column("image", list("abcabc"))
    with pytest.raises(UsageError, match="row 0 of the column 'image' is str, no image; cast it"):
        resolve(paths).batch([0])


MODULE = """
import torch
from torch.utils.data import DataLoader, TensorDataset

X = torch.rand(6, 3, 5, 7, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, 1, 2])
dataset = TensorDataset(X, Y)
batch = [X, Y]

def make(n=6):
    return TensorDataset(X[:n], Y[:n])

def loaded():
    return next(iter(DataLoader(dataset, batch_size=6)))
"""


def test_a_spec_may_name_a_dataset_or_what_makes_one(tmp_path):
    (tmp_path / "my_data_here.py").write_text(MODULE)
    for spec in ("python/my_data_here.dataset", "python/my_data_here:dataset", "python/my_data_here.batch",
                 "python/my_data_here:make", "python/my_data_here.loaded"):  # fmt: skip
        x, y = load_dataset(spec).batch([5, 0])
        assert torch.equal(x, X[[5, 0]])
        assert y.tolist() == [2, 0]
    with pytest.raises(UsageError, match=r"my_data_here.dataset is a dataset already, which takes no options"):
        load_dataset("python/my_data_here.dataset:n=3")


def test_every_form_gives_the_number_of_the_pair():
    net = robustkit.load_model("digits-cnn-at")[0]
    x, y = load_dataset("digits").batch(range(40))

    def number(data):
        record = robustkit.evaluate(net, data, "pgd:steps=3", eps=0.2, doctor=False)
        return float(record.clean_accuracy), float(record.robust_accuracy), record.job["data_sha256"]

    want = number((x, y))
    for data in ([x, y], {"image": x, "label": y}, Items(lambda i: (x[i], torch.eye(10)[y[i]], i), classes=10, n=40)):
        assert number(data) == want
