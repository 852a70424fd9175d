"""Datasets of image files: folders, ImageNet's layouts and samples, made here."""

import numpy as np
import pytest
import torch

from robustkit.api import Dataset
from robustkit.datasets import listing, load_dataset
from robustkit.datasets.imagenet import class_numbers, robustbench_list
from robustkit.datasets.images import Framing
from robustkit.errors import UsageError

PIL = pytest.importorskip("PIL.Image")


pytestmark = pytest.mark.usefixtures("no_data_around")


def picture(width, height, seed=0, mode="RGB"):
    channels = () if mode == "L" else (3,)
    pixels = np.random.default_rng(seed).integers(0, 256, (height // 4 + 1, width // 4 + 1, *channels), dtype=np.uint8)
    return PIL.fromarray(pixels).resize((width, height))


def write(file, width=8, height=6, seed=0, mode="RGB"):
    file.parent.mkdir(parents=True, exist_ok=True)
    image = picture(width, height, seed, mode)
    image.save(file)
    return image


def tensor(image):
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255


# ---- framing


@pytest.mark.parametrize("size", [(500, 333), (333, 500), (256, 256), (257, 301), (240, 1000)])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_framing_is_torchvisions_resize_and_center_crop(size, interpolation):
    transforms = pytest.importorskip("torchvision.transforms")
    image = picture(*size)
    mode = transforms.InterpolationMode(interpolation)
    theirs = transforms.Compose([transforms.Resize(256, mode), transforms.CenterCrop(224), transforms.PILToTensor()])
    ours = Framing(256, 224, interpolation).apply(image)
    assert np.array_equal(ours, theirs(image).numpy())


def test_a_frame_that_does_not_fit_is_refused():
    with pytest.raises(UsageError, match="crop=224 does not fit in resize=200"):
        Framing(200, 224)
    with pytest.raises(UsageError, match="8×6 has no square of 7 pixels; add resize="):
        Framing(0, 7).apply(picture(8, 6))


# ---- folder


def test_class_folders_are_numbered_in_their_order(tmp_path):
    images = {name: write(tmp_path / "d" / name, seed=i) for i, name in enumerate(["b/2.png", "a/x.PNG", "b/1.png"])}
    (tmp_path / "d" / "b" / "notes.txt").write_text("no image")
    (tmp_path / "d" / ".hidden").mkdir()
    data = load_dataset("folder/d")
    assert isinstance(data, Dataset)
    assert (len(data), data.classes, data.name) == (3, 2, "d")
    x, y = data.batch([2, 0])
    assert torch.equal(x, torch.stack([tensor(images["b/2.png"]), tensor(images["a/x.PNG"])]))
    assert (x.dtype, y.tolist(), data.labels.tolist()) == (torch.float32, [1, 0], [0, 1, 1])


def test_an_absolute_path_names_a_folder(tmp_path):
    write(tmp_path / "d" / "a" / "1.png")
    assert len(load_dataset(f"folder/{tmp_path}/d")) == 1


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("list.txt", "b\na\nc\n"),
        ("list.json", '["b", "a", "c"]'),
        ("list.json", '{"a": 1, "b": 0, "c": 2}'),
        ("list.json", '{"0": "b", "1": "a", "2": "c"}'),
        ("list.json", '{"0": ["b", "bee"], "1": ["a", "ant"], "2": ["c", "cat"]}'),
    ],
)
def test_a_class_list_numbers_the_classes(tmp_path, name, content):
    write(tmp_path / "d" / "a" / "1.png")
    write(tmp_path / "d" / "b" / "1.png")
    (tmp_path / name).write_text(content)
    data = load_dataset(f"folder/d:classes={name}")
    assert (data.labels.tolist(), data.classes) == ([1, 0], 3)


def test_a_grey_image_among_colour_images_gets_three_channels(tmp_path):
    write(tmp_path / "d" / "a" / "1.png", mode="L")
    write(tmp_path / "d" / "a" / "2.png")
    assert load_dataset("folder/d").batch([0, 1])[0].shape == (2, 3, 6, 8)
    assert load_dataset("folder/d:grey=true").batch([0, 1])[0].shape == (2, 1, 6, 8)


def test_folders_that_cannot_be_read_say_why(tmp_path):
    write(tmp_path / "d" / "a" / "1.png")
    write(tmp_path / "d" / "b" / "1.png", 16, 16)
    (tmp_path / "empty" / "a").mkdir(parents=True)
    (tmp_path / "flat").mkdir()
    (tmp_path / "a.txt").write_text("a\n")
    (tmp_path / "two.json").write_text('{"a": 0, "b": 0}')
    (tmp_path / "broken.json").write_text("{")
    for spec, message in (
        ("folder/absent", "there is no folder 'absent'"),
        ("folder/flat", "holds no class folders; images go into one folder a class"),
        ("folder/empty", "no images there"),
        ("d", "to read a folder of class folders, write folder/d"),
        ("folder", "'folder' alone names no data; write folder/…"),
        ("folder/d:classes=a.txt", "b is no class of a.txt"),
        ("folder/d:classes=two.json", "each class needs a number of its own"),
        ("folder/d:classes=broken.json", "is no class list"),
        ("folder/d:classes=gone.txt", "gone.txt: No such file"),
        ("folder/d:clases=a", "no option called 'clases'; did you mean classes"),
        ("folder/d:size=-1", "must be numbers of pixels"),
    ):
        with pytest.raises(UsageError, match=message):
            load_dataset(spec)
    data = load_dataset("folder/d")
    with pytest.raises(UsageError, match=r"different sizes \(8×6 and 16×16\); add size="):
        data.batch([0, 1])
    with pytest.raises(UsageError, match="d has images 0 to 1; there is no 2"):
        data.batch([2])
    assert load_dataset("folder/d:size=6").batch([0, 1])[0].shape == (2, 3, 6, 6)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", "cut"])
def test_a_file_that_is_no_image_is_named(tmp_path, content):
    write(tmp_path / "d" / "a" / "1.png", 64, 64)
    file = tmp_path / "d" / "a" / "1.png"
    file.write_bytes(file.read_bytes()[:200] if content == "cut" else content)
    with pytest.raises(UsageError, match=r"1.png cannot be read as an image"):
        load_dataset("folder/d").batch([0])


def test_a_batch_opens_only_its_own_files(tmp_path):
    for i in range(4):
        write(tmp_path / "d" / "a" / f"{i}.png")
    (tmp_path / "d" / "a" / "3.png").write_bytes(b"broken")
    data = load_dataset("folder/d")
    assert len(data.batch([0, 1, 2])[1]) == 3
    with pytest.raises(UsageError, match=r"3\.png"):
        data.batch([3])


# ---- ImageNet


def imagenet_wnids():
    pytest.importorskip("timm")  # the extra that brings robustbench
    try:
        return class_numbers()
    except UsageError:
        pytest.skip("robustbench is not installed")


def test_class_folders_of_imagenet_have_its_numbers_even_when_only_some_are_there(tmp_path):
    numbers = imagenet_wnids()
    assert numbers == {wnid: i for i, wnid in enumerate(sorted(numbers))}
    assert len(numbers) == 1000
    write(tmp_path / "data" / "imagenet" / "val" / "n15075141" / "ILSVRC2012_val_00000001.JPEG", 300, 260)
    write(tmp_path / "data" / "imagenet" / "val" / "n01443537" / "ILSVRC2012_val_00000002.JPEG", 260, 300)
    data = load_dataset("imagenet")
    assert (data.labels.tolist(), data.classes) == ([1, 999], 1000)
    x, _ = data.batch([0, 1])
    assert x.shape == (2, 3, 224, 224)
    assert load_dataset("imagenet:resize=0,crop=64,path=./data/imagenet/val").batch([0])[0].shape == (1, 3, 64, 64)


def test_robustbenchs_list_picks_by_file_name_in_its_order(tmp_path):
    numbers, listed = imagenet_wnids(), robustbench_list()
    assert len(listed) == len(set(listed)) == 5000
    source = tmp_path / "one.JPEG"
    write(source, 32, 32)
    flat = tmp_path / "flat"
    flat.mkdir()
    for entry in listed[1:]:
        (flat / entry.rpartition("/")[2]).hardlink_to(source)
    (flat / "ILSVRC2012_val_99999999.JPEG").hardlink_to(source)
    truth = tmp_path / "truth.txt"
    rows = [f"{e.partition('/')[2]} {e.partition('/')[0]}" for e in listed]
    truth.write_text("\n".join([*sorted(rows), "ILSVRC2012_val_99999999.JPEG n01440764"]))
    spec = "imagenet:path=./flat,labels=truth.txt,resize=32,crop=32"
    with pytest.raises(UsageError, match=rf"lacks 1 of the 5000 images, such as {listed[0].partition('/')[2]}"):
        load_dataset(spec + ",subset=robustbench")
    (flat / listed[0].rpartition("/")[2]).hardlink_to(source)
    assert len(load_dataset(spec)) == 5001
    data = load_dataset(spec + ",subset=robustbench")
    assert data.labels.tolist() == [numbers[entry.partition("/")[0]] for entry in listed]
    assert [file.rpartition("/")[2] for file in data.files] == [entry.rpartition("/")[2] for entry in listed]


def flat_imagenet(tmp_path, n=3):
    for i in range(1, n + 1):
        write(tmp_path / "flat" / f"ILSVRC2012_val_{i:08}.JPEG", 32, 32)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("val.txt", "ILSVRC2012_val_00000003.JPEG 7\nILSVRC2012_val_00000001.JPEG 5\nILSVRC2012_val_00000002.JPEG 999"),
        (
            "LOC_val_solution.csv",
            "ImageId,PredictionString\nILSVRC2012_val_00000003,n01514668 1 2 3 4\n"
            "ILSVRC2012_val_00000001,n01496331 85 1 219 206\n"
            "ILSVRC2012_val_00000002,n15075141 1 1 2 2 n15075141 1 1 2 2",
        ),
        ("synsets.txt", "n01496331\nn15075141\nn01514668\n"),
    ],
)
def test_a_flat_folder_takes_its_classes_from_a_ground_truth_file(tmp_path, name, text):
    imagenet_wnids()
    flat_imagenet(tmp_path)
    (tmp_path / name).write_text(text)
    assert load_dataset(f"imagenet:path=./flat,labels={name}").labels.tolist() == [5, 999, 7]


def test_the_devkits_own_numbers_are_translated_through_its_meta_file(tmp_path):
    from scipy.io import savemat

    wnids = sorted(imagenet_wnids())
    devkit = np.random.default_rng(0).permutation(1000)  # the devkit's order is not the networks'
    kind = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    synsets = np.zeros((1001, 1), dtype=kind)
    for i, row in enumerate(devkit):
        synsets[i, 0] = (i + 1, wnids[row], "words", "gloss", 0)
    synsets[1000, 0] = (1001, "n00001740", "entity", "an inner node", 3)
    (tmp_path / "devkit" / "data").mkdir(parents=True)
    truth = tmp_path / "devkit" / "data" / "ILSVRC2012_validation_ground_truth.txt"
    truth.write_text("1\n1000\n17\n")
    flat_imagenet(tmp_path)
    with pytest.raises(UsageError, match=r"bare numbers, which the devkit counts otherwise .* keep its meta.mat"):
        load_dataset("imagenet:path=./flat,labels=devkit")
    savemat(truth.parent / "meta.mat", {"synsets": synsets})
    want = [int(devkit[0]), int(devkit[999]), int(devkit[16])]
    assert load_dataset("imagenet:path=./flat,labels=devkit").labels.tolist() == want
    truth.write_text("1\n1001\n17\n")
    with pytest.raises(UsageError, match="'1001' is no"):
        load_dataset("imagenet:path=./flat,labels=devkit")


def test_imagenet_that_is_not_as_it_should_be_says_what_to_do(tmp_path):
    imagenet_wnids()
    flat_imagenet(tmp_path)
    (tmp_path / "short.txt").write_text("n01496331\n")
    (tmp_path / "wrong.txt").write_text("n01496331\nn01496331\nn00000000\n")
    (tmp_path / "some.txt").write_text("ILSVRC2012_val_00000001.JPEG 5\n")
    (tmp_path / "bare").mkdir()
    write(tmp_path / "strange" / "n99999999" / "1.JPEG")
    for options, message in (
        ("", "imagenet is not in the folders .* asked for at image-net.org"),
        (":path=./gone", "imagenet is not at ./gone"),
        (":path=./bare", "has neither class folders .* nor ILSVRC2012_val"),
        (":path=./strange", "n99999999 is no class of ImageNet's 1,000 classes"),
        (":path=./flat", "add labels=FILE"),
        (":path=./flat,labels=gone.txt", "no ground truth at 'gone.txt'"),
        (":path=./flat,labels=short.txt", "has 1 lines, but there are 3 images"),
        (":path=./flat,labels=wrong.txt", "'n00000000' is no WordNet id"),
        (":path=./flat,labels=some.txt", "no class for 2 of the images, such as ILSVRC2012_val_00000002"),
    ):
        with pytest.raises(UsageError, match=message):
            load_dataset(f"imagenet{options}")


def tiny_imagenet(root):
    root.mkdir(parents=True)
    (root / "wnids.txt").write_text("n03\nn01\nn02\n")
    rows = []
    for i, wnid in ((1, "n02"), (0, "n03"), (2, "n01")):
        write(root / "val" / "images" / f"val_{i}.JPEG", 64, 64, seed=i)
        rows.append(f"val_{i}.JPEG\t{wnid}\t0\t32\t44\t62")
    (root / "val" / "val_annotations.txt").write_text("\n".join(rows) + "\n")
    write(root / "train" / "n03" / "images" / "n03_0.JPEG", 64, 64)
    return root


def test_tiny_imagenet_is_read_in_its_layout(tmp_path):
    root = tiny_imagenet(tmp_path / "data" / "tiny-imagenet-200")
    data = load_dataset("tiny-imagenet")
    assert (data.labels.tolist(), data.classes) == ([2, 1, 0], 3)
    assert data.batch([0, 1, 2])[0].shape == (3, 3, 64, 64)
    assert load_dataset("tiny-imagenet:split=train").labels.tolist() == [2]
    assert load_dataset(f"tiny-imagenet:path={root},size=32").batch([0])[0].shape == (1, 3, 32, 32)
    (root / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn09\t0\t0\t1\t1\n")
    with pytest.raises(UsageError, match=r"'n09'.* is no image with a class of wnids.txt"):
        load_dataset("tiny-imagenet")
    (root / "wnids.txt").unlink()
    with pytest.raises(UsageError, match=r"has no wnids.txt"):
        load_dataset("tiny-imagenet")


# ---- samples


@pytest.mark.parametrize(
    ("name", "classes", "shape"),
    [
        ("cifar10", 10, (3, 32, 32)), ("cifar100", 100, (3, 32, 32)), ("imagenet", 1000, (3, 224, 224)),
        ("mnist", 10, (1, 28, 28)), ("fashionMNIST", 10, (1, 28, 28)),
    ],
)  # fmt: skip
def test_twenty_samples_come_with_foolbox(name, classes, shape):
    pytest.importorskip("foolbox")
    data = load_dataset(f"samples/{name}")
    assert (len(data), data.classes) == (20, classes)
    x, y = data.batch([0, 19])
    assert x.shape == (2, *shape)
    assert int(data.labels.max()) < classes
    assert x.std() > 0.1
    assert torch.equal(y, data.labels[[0, 19]])


def test_the_samples_labels_are_those_of_their_names():
    pytest.importorskip("foolbox")
    assert load_dataset("samples/cifar10").labels[:5].tolist() == [3, 8, 8, 0, 6]
    assert load_dataset("samples/imagenet:resize=128,crop=96").batch([3])[0].shape == (1, 3, 96, 96)
    with pytest.raises(UsageError, match="no samples called 'cifar'; did you mean cifar10"):
        load_dataset("samples/cifar")


# ---- the list


def test_every_dataset_is_listed_with_one_line():
    rows = dict(listing())
    assert {"digits", "scenes", "cifar10", "cifar100", "mnist", "fashion-mnist", "svhn", "imagenet", "tiny-imagenet",
            "cifar10-c", "cifar100-c", "imagenet-c", "folder/…", "hf/…", "./images.npz", "corrupted/(cifar10)",
            "samples/imagenet"} <= set(rows)  # fmt: skip
    assert all(summary and "\n" not in summary and len(summary) < 100 for summary in rows.values())


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    import sys

    write(tmp_path / "d" / "a" / "1.png")
    for package, spec, extra in (("PIL", "folder/d", "data"), ("datasets", "hf/./d", "data")):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)
            patch.delitem(sys.modules, "PIL.Image", raising=False)
            with pytest.raises(UsageError, match=rf"pip install 'robustkit-bench\[{extra}\]'"):
                load_dataset(spec)
    monkeypatch.setattr("robustkit.datasets.samples.find_spec", lambda name: None)
    monkeypatch.setattr("robustkit.datasets.imagenet.find_spec", lambda name: None)
    with pytest.raises(UsageError, match=r"pip install 'robustkit-bench\[attacks\]'"):
        load_dataset("samples/cifar10")
    write(tmp_path / "val" / "n01440764" / "1.JPEG")
    with pytest.raises(UsageError, match=r"1 of 1,000 class folders are there.*pip install 'robustkit-bench\[zoo\]'"):
        load_dataset("imagenet:path=.")
