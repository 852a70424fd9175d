import torch
from click.testing import CliRunner

from robustkit.cli import main
from robustkit.sources import load_model

ARGUMENTS = ["train", "standard", "--arch", "digits-cnn", "--data", "digits", "--epochs", "2", "--threads", "1"]


def test_a_trained_folder_is_a_model(tmp_path):
    result = CliRunner().invoke(main, [*ARGUMENTS, "--out", str(tmp_path / "net")])
    assert result.exit_code == 0, result.output
    module, card = load_model(str(tmp_path / "net"))
    assert not module.training
    assert (card.dataset, card.classes, card.input_shape, card.source) == ("digits", 10, (1, 8, 8), "file")
    assert module(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_the_same_training_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        assert CliRunner().invoke(main, [*ARGUMENTS, "--out", str(tmp_path / name)]).exit_code == 0
    one, two = ((tmp_path / name / "model.safetensors").read_bytes() for name in ("a", "b"))
    assert one == two
