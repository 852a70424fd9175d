"""Images as people have them: more bits than eight, other colours, other layouts, copies that an editor left."""

import io
import struct

import numpy as np
import pytest
import torch

from robustkit import evaluate, load_dataset
from robustkit.datasets import resolve
from robustkit.errors import UsageError

PIL = pytest.importorskip("PIL.Image")

pytestmark = pytest.mark.usefixtures("no_data_around")
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7), dtype=np.uint8)
LEVELS = torch.from_numpy(PIXELS).float() / 255


def saved(tmp_path, image, name="1.png", **options):
    file = tmp_path / "d" / "a" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file, **options)
    return load_dataset("folder/d").batch([0])[0][0]


def tiff(values, bits, white_is_zero=False):
    """An uncompressed grey TIFF by hand: Pillow writes none of 12 bits, and none whose white is zero."""
    if bits == 12:  # two values in three bytes
        pairs = values.reshape(-1, 2).astype(int)
        data = bytes(
            byte for a, b in pairs for byte in (a >> 4, (a & 15) << 4 | b >> 8, b & 255)
        )  # fmt: skip
    else:
        data = values.astype("<u2").tobytes()
    height, width = values.shape
    tags = [(256, width), (257, height), (258, bits), (259, 1), (262, 0 if white_is_zero else 1), (273, 8), (277, 1),
            (278, height), (279, len(data))]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + entries + b"\0" * 4


@pytest.mark.parametrize("name", ["1.png", "1.tif", "1.pgm"])
def test_sixteen_bits_are_divided_by_65535(tmp_path, name):
    wide = PIXELS.astype(np.uint16) * 257  # the same greys, for 65535 = 257 · 255
    x = saved(tmp_path, PIL.fromarray(wide), name)
    assert torch.allclose(x, LEVELS.expand(3, -1, -1), atol=1e-7)
    between = wide // 3 + 11
    fine = saved(tmp_path, PIL.fromarray(between), name)
    assert torch.allclose(fine[0], torch.from_numpy(between.astype(np.float32)) / 65535, atol=1e-7)
    assert load_dataset("folder/d:grey=true").batch([0])[0].shape == (1, 1, 5, 7)


def test_sixteen_bits_of_the_other_byte_order_and_twelve_and_white_as_zero(tmp_path):
    wide = PIXELS.astype(np.uint16) * 257
    x = saved(tmp_path, PIL.frombytes("I;16B", (7, 5), wide.astype(">u2").tobytes()), "1.tif")
    assert torch.allclose(x[0], LEVELS, atol=1e-7)
    even = np.arange(4 * 6).reshape(4, 6) * 178  # to 4094 of 4095
    file = tmp_path / "d" / "a" / "1.tif"
    file.write_bytes(tiff(even, 12))
    assert torch.allclose(load_dataset("folder/d").batch([0])[0][0, 0], torch.from_numpy(even).float() / 4095)
    file.write_bytes(tiff(wide, 16, white_is_zero=True))
    assert torch.allclose(load_dataset("folder/d").batch([0])[0][0, 0], 1 - LEVELS, atol=1e-7)


def test_sixteen_bit_images_are_resized_as_eight_bit_ones(tmp_path):
    wide = PIL.fromarray(PIXELS.astype(np.uint16) * 257)
    saved(tmp_path, PIL.fromarray(PIXELS), "8.png")
    saved(tmp_path, wide, "16.png")
    for how in ("bilinear", "bicubic"):
        one, other = load_dataset(f"folder/d:size=3,interpolation={how}").batch([0, 1])[0]
        assert (one - other).abs().max() <= 1 / 255
        assert 0 <= min(one.min(), other.min()) <= max(one.max(), other.max()) <= 1


def test_floats_are_taken_in_the_unit_range_and_refused_beyond_it(tmp_path):
    x = saved(tmp_path, PIL.fromarray(PIXELS.astype(np.float32) / np.float32(255)), "1.tif")
    assert torch.equal(x, LEVELS.expand(3, -1, -1))
    for values, message in (
        (
            PIXELS.astype(np.float32),
            r"1.tif cannot be read as an image: it holds floats from \d+ to \d+, of which nothing",
        ),
        (PIXELS / np.float32(255) - np.float32(0.1), "it holds floats from -0.08"),
        (PIXELS.astype(np.int32) * 9, "it holds 32-bit whole numbers from .* save it with 8 or 16 bits, or as floats"),
    ):
        with pytest.raises(UsageError, match=message) as caught:
            saved(tmp_path, PIL.fromarray(values), "1.tif")
        assert "\n" not in str(caught.value)


def test_colours_are_what_they_show(tmp_path):
    cmyk = np.random.default_rng(1).integers(0, 256, (5, 7, 4), dtype=np.uint8)
    x = saved(tmp_path, PIL.fromarray(cmyk, "CMYK"), "1.tif")
    ink = cmyk.astype(int)
    want = (255 - ink[..., :3]) * (255 - ink[..., 3:]) / 255**2
    assert np.abs(x.permute(1, 2, 0).numpy() - want).max() <= 1 / 255
    (tmp_path / "d/a/1.tif").unlink()
    palette = PIL.fromarray((PIXELS > 99).astype(np.uint8), "P")
    palette.putpalette([255, 0, 0, 0, 0, 255])
    red = torch.from_numpy(PIXELS <= 99).float()
    assert torch.equal(saved(tmp_path, palette), torch.stack([red, 0 * red, 1 - red]))
    assert torch.equal(saved(tmp_path, PIL.fromarray(PIXELS > 99)), (1 - red).expand(3, -1, -1))
    assert load_dataset("folder/d").notes == ()


def test_transparency_and_rotation_are_said_and_the_stored_pixels_taken(tmp_path, recwarn):
    colours = np.random.default_rng(2).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    stored = torch.from_numpy(colours).permute(2, 0, 1).float() / 255
    clear = PIL.fromarray(np.dstack([colours, np.where(PIXELS > 99, 255, 0).astype(np.uint8)]))
    opaque = PIL.fromarray(np.dstack([colours, np.full_like(PIXELS, 255)]))
    palette = PIL.fromarray((PIXELS > 99).astype(np.uint8), "P")
    palette.putpalette([255, 0, 0, 0, 0, 255])
    turned = PIL.Exif()
    turned[0x0112] = 6
    folder = tmp_path / "d" / "a"
    folder.mkdir(parents=True)
    clear.save(folder / "1.png")
    opaque.save(folder / "2.png")
    palette.save(folder / "3.png", transparency=b"\x00\xff")
    PIL.fromarray(colours).save(folder / "4.png", exif=turned)
    data = load_dataset("folder/d")
    x = data.batch(range(4))[0]
    assert all(torch.equal(x[i], stored) for i in (0, 1, 3))
    data.batch([0])  # once more counts once
    assert data.notes == (
        "of transparent pixels the colour beneath is taken, as torchvision and timm take it (2 of the images read)",
        "images stored turned or mirrored (EXIF orientation) are taken so, as torchvision and timm take them "
        "(1 of the images read)",
    )
    assert not recwarn.list


def test_a_table_of_hugging_face_decodes_as_a_folder_does():
    datasets = pytest.importorskip("datasets")
    wide = io.BytesIO()
    PIL.fromarray(PIXELS.astype(np.uint16) * 257).save(wide, "PNG")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])})
    made = datasets.Dataset.from_dict({"image": [{"bytes": wide.getvalue()}] * 2, "label": [0, 1]}, features)
    assert torch.allclose(resolve(made).batch([1])[0][0], LEVELS.expand(3, -1, -1), atol=1e-7)
    floats = io.BytesIO()
    PIL.fromarray(PIXELS.astype(np.float32)).save(floats, "TIFF")
    bad = datasets.Dataset.from_dict({"image": [{"bytes": floats.getvalue()}], "label": [0]}, features)
    with pytest.raises(UsageError, match="row 0 cannot be read as an image: it holds floats"):
        resolve(bad).batch([0])


def test_photographs_of_more_bits_than_eight_are_refused(tmp_path):
    photos = pytest.importorskip("robustkit_defenses.raw.photos")
    PIL.fromarray(np.zeros((40, 40), np.uint16)).save(tmp_path / "1.png")
    with pytest.raises(UsageError, match=r"1.png cannot be read as an image: its pixels are not bytes"):
        photos.read(str(tmp_path))
    PIL.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "1.png")
    (tmp_path / "._1.png").write_bytes(b"\0\5\x16\7")
    assert len(photos.read(str(tmp_path)).images) == 1


def test_hidden_copies_are_skipped_at_any_depth_and_counted(tmp_path):
    kept = ["cat/0.png", "cat/sub/1.png", "dog/0.png"]
    copies = ["cat/.ipynb_checkpoints/0-checkpoint.png", "cat/sub/.thumbs/1.png", "dog/.0.png", "__MACOSX/cat/0.png"]
    for name in kept + copies:
        file = tmp_path / "d" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        PIL.fromarray(PIXELS).save(file)
    (tmp_path / "d/cat/._0.png").write_bytes(b"\0\5\x16\7")  # AppleDouble, no image
    data = load_dataset("folder/d")
    assert [file.partition("d/")[2] for file in data.files] == kept
    assert (data.labels.tolist(), data.classes) == ([0, 0, 1], 2)
    assert data.notes == ("hidden image files in the class folders are skipped (4)",)
    net = torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 2))
    record = evaluate(net, data, "fgsm", eps=0.1)
    assert record.n == 3
    assert record.summary().count("hidden image files") == 1
    inside = tmp_path / ".cache" / "d"  # what lies above the data is not looked at
    (inside / "cat").mkdir(parents=True)
    PIL.fromarray(PIXELS).save(inside / "cat" / "0.png")
    assert len(load_dataset(f"folder/{inside}")) == 1


def test_numbered_class_folders_are_sorted_as_text_and_it_is_said(tmp_path):
    for name in map(str, range(11)):
        (tmp_path / "d" / name).mkdir(parents=True)
        PIL.fromarray(PIXELS).save(tmp_path / "d" / name / "1.png")
    (note,) = load_dataset("folder/d").notes
    assert note.startswith(
        "the class folders are numbers, and sorted as text, as torchvision's ImageFolder does: 10 is"
    )
    assert "10 is class 2; classes=FILE numbers them otherwise" in note
    (tmp_path / "list.txt").write_text("\n".join(map(str, range(11))))
    listed = load_dataset("folder/d:classes=list.txt")
    assert (listed.notes, listed.labels.sort().values.tolist()) == ((), list(range(11)))
