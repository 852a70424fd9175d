"""What torch saved is checked before it is unpickled, and runs code only where the user trusts it."""

import pickle
import zipfile

import pytest
import torch

from robustkit.errors import UsageError
from robustkit.models.sources import checkpoint
from robustkit.models.sources.trust import trusted, trusting


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (exec, (f"open({str(self.file)!r}, 'w').close()",))


def test_trust_reaches_nested_loads_and_ends(tmp_path):
    assert not trusted()
    with trusting(True):
        assert trusted()
        with trusting(False):
            assert not trusted()
        assert trusted()
    assert not trusted()


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"\x80\x02}q\x00(X\x05", "cut short"),
        (b"no checkpoint at all", "no file saved by torch"),
        (b"<html></html>", "HTML page"),
        (b"", "empty"),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path, body, said):
    file = tmp_path / "net.pt"
    file.write_bytes(body)
    with pytest.raises(UsageError, match=said):
        checkpoint.read(file)


def test_a_zip_that_torch_did_not_write_is_refused(tmp_path):
    file = tmp_path / "net.pt"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("hello.txt", "hello")
    with pytest.raises(checkpoint.BrokenError, match="no checkpoint that torch can read"):
        checkpoint.read(file)


def test_the_format_before_torch_1_6_is_read(tmp_path):
    file = tmp_path / "net.pt"
    torch.save({"w": torch.ones(2)}, file, _use_new_zipfile_serialization=False)
    assert torch.equal(checkpoint.read(file)["w"], torch.ones(2))


def test_no_network_gets_code_from_a_file_that_only_looks_like_weights(tmp_path):
    """A raw pickle is refused as well: torch.load reads it, weights_only stops it."""
    mark, file = tmp_path / "ran", tmp_path / "net.pt"
    file.write_bytes(pickle.dumps(Payload(mark)))
    with pytest.raises(UsageError):
        checkpoint.read(file)
    assert not mark.exists()
