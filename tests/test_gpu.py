"""On a CUDA device: the CPU's answers but for samples near a boundary, attacks that conform, and runs that resume."""

import numpy as np
import pytest
from robustkit_attacks.apgd import APGD
from robustkit_attacks.fgsm import FGSM
from robustkit_attacks.pgd import PGD
from robustkit_attacks.square import Square

from robustkit import evaluate
from robustkit.testing import check_attack
from tests import needs
from tests.test_resume import assert_same

pytestmark = [pytest.mark.gpu, needs.cuda]
SPEC = "(apgd:steps=10)+(square:queries=100)"
NEAR = 0.1  # of a margin in logits: what rounding in another order may move across the boundary in ten steps


def test_the_cpu_and_cuda_agree_but_for_samples_near_the_boundary():
    here, there = (
        evaluate("digits-cnn-at", "digits", SPEC, eps=0.2, n=100, tile=16, device=device) for device in ("cpu", "cuda")
    )
    assert there.job["device"] == "cuda"
    assert there.unknown == here.unknown == 0
    assert 20 < here.counts["BROKEN"] < 80
    a, b = (record.attacks_frame().set_index(["index", "attack"]) for record in (here, there))
    last = [frame.groupby("index")["margin"].min() for frame in (a, b)]
    other = here.to_frame()["status"] != there.to_frame()["status"]
    listed = here.to_frame()["index"][other].tolist()
    assert len(listed) <= 5, listed
    assert all(min(abs(margins[index]) for margins in last) < NEAR for index in listed), listed


@pytest.mark.parametrize(
    "attack", [FGSM(), PGD(steps=15, restarts=2), APGD(steps=15, restarts=2), Square(queries=150)], ids=repr
)
def test_attacks_conform_on_cuda(attack):
    assert len(check_attack(attack, device="cuda")) >= 2 + 8 * len(attack.norms)
    assert len(check_attack(attack, device="cuda", level="judge-safe")) >= 2 + 5 * len(attack.norms)


def test_a_run_on_cuda_that_was_stopped_ends_as_one_that_was_not(tmp_path):
    def run(folder, on_event=None):
        return evaluate(
            "digits-cnn-at", "digits", SPEC, eps=0.2, n=60, shard_size=20, tile=16, device="cuda", out=folder,
            on_event=on_event,
        )  # fmt: skip

    def stops(event):
        if (tmp_path / "stopped/journal/shard-00001-01.npz").exists():
            raise InterruptedError

    calm = run(tmp_path / "calm")
    with pytest.raises(InterruptedError):
        run(tmp_path / "stopped", stops)
    assert not (tmp_path / "stopped/run.json").exists()
    stored = {path: path.stat().st_mtime_ns for path in (tmp_path / "stopped/journal").glob("*.npz")}
    assert 0 < len(stored) < len(list((tmp_path / "calm/journal").glob("*.npz")))
    assert run(tmp_path / "stopped").counts == calm.counts
    assert all(path.stat().st_mtime_ns == written for path, written in stored.items())
    assert_same(tmp_path / "calm", tmp_path / "stopped")
    assert np.isfinite(calm.attacks["margin"].astype(float)).all()
