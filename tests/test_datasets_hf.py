"""Hugging Face tables, made here and read from disk."""

import numpy as np
import pytest
import torch

from robustkit.api import Dataset
from robustkit.datasets import load_dataset
from robustkit.errors import UsageError
from tests.test_datasets_images import picture

pytestmark = pytest.mark.usefixtures("no_data_around")


def tensor(image):
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255


@pytest.fixture
def table(monkeypatch, tmp_path):
    """A table of five images in three classes."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf-cache")
    datasets.disable_progress_bars()
    features = datasets.Features(
        {"img": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b", "c"]), "id": datasets.Value("int64")}
    )
    images = [picture(8, 6, seed) for seed in range(5)]
    content = {"img": images, "label": [2, 0, 1, 2, 0], "id": list(range(5))}
    return datasets.Dataset.from_dict(content, features=features), images


def check_table(data, images):
    assert isinstance(data, Dataset)
    assert (len(data), data.classes) == (5, 3)
    x, y = data.batch([4, 1, 1])
    assert torch.equal(x, torch.stack([tensor(images[i]) for i in (4, 1, 1)]))
    assert y.tolist() == [0, 0, 0]
    assert data.labels.tolist() == [2, 0, 1, 2, 0]
    assert data.batch([])[1].shape == (0,)


def test_a_table_saved_to_disk_is_read(tmp_path, table):
    made, images = table
    made.save_to_disk(str(tmp_path / "saved"))
    check_table(load_dataset("hf/./saved"), images)
    check_table(load_dataset(f"hf/{tmp_path}/saved:image=img,label=label"), images)
    assert load_dataset("hf/./saved:size=4,grey=true").batch([0])[0].shape == (1, 1, 4, 4)


def test_a_table_with_splits_is_read(tmp_path, table):
    datasets = pytest.importorskip("datasets")
    made, images = table
    datasets.DatasetDict({"test": made, "train": made.select([0])}).save_to_disk(str(tmp_path / "splits"))
    check_table(load_dataset("hf/./splits"), images)
    assert len(load_dataset("hf/./splits:split=train")) == 1
    with pytest.raises(UsageError, match="no split of splits called 'tets'; did you mean test"):
        load_dataset("hf/./splits:split=tets")


def test_parquet_files_are_read(tmp_path, table):
    made, images = table
    (tmp_path / "parquet" / "data").mkdir(parents=True)
    made.to_parquet(str(tmp_path / "parquet" / "data" / "test-00000-of-00001.parquet"))
    made.select([0]).to_parquet(str(tmp_path / "parquet" / "data" / "train-00000-of-00001.parquet"))
    check_table(load_dataset("hf/./parquet"), images)
    assert len(load_dataset("hf/./parquet:split=train")) == 1
    with pytest.raises(UsageError, match=r"its .parquet files are not called valid…; choose with split="):
        load_dataset("hf/./parquet:split=valid")


def test_a_table_without_the_columns_lists_what_there_is(tmp_path, table):
    datasets = pytest.importorskip("datasets")
    made, _ = table
    made.rename_column("label", "fine").add_column("coarse", [0] * 5).save_to_disk(str(tmp_path / "renamed"))
    made.remove_columns("img").save_to_disk(str(tmp_path / "blind"))
    named = {"img": [picture(8, 6)], "label": ["cat"]}
    datasets.Dataset.from_dict(named).cast_column("img", datasets.Image()).save_to_disk(str(tmp_path / "words"))
    (tmp_path / "nothing").mkdir()
    assert load_dataset("hf/./renamed").classes == 3  # the only column of class labels
    assert load_dataset("hf/./renamed:label=coarse").classes == 0
    for spec, message in (
        ("hf/./blind", r"which column is the image\? add image=; there are: label \(ClassLabel\), id \(Value\)"),
        ("hf/./words", "'label' holds no class numbers"),
        ("hf/./renamed:label=fines", "no column of hf/./renamed called 'fines'; did you mean fine"),
        ("hf/./nothing", "is not of save_to_disk, and no .parquet files"),
        ("hf/./absent", "there is no folder 'absent'; write hf/ORG/NAME"),
        ("hf/org/name", "offline; give a folder that save_to_disk wrote"),
    ):
        with pytest.raises(UsageError, match=message):
            load_dataset(spec)
