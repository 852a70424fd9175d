"""The audit on whole networks: no broken defense of the zoo passes, no honest network is suspected. Minutes."""

import pytest

from benchmarks import kit, masking_zoo
from robustkit import evaluate
from robustkit.audit.run import audit

N = 128
BROKEN = {one.name: one for one in (*masking_zoo.CALIBRATION, *masking_zoo.HELD_OUT)}
HONEST = {f"{one.name} {one.norm} {one.eps:.3g} {one.defense}".strip(): one
          for one in (*masking_zoo.HONEST_CALIBRATION, *masking_zoo.HONEST_HELD_OUT)}  # fmt: skip


def test_the_zoo_is_large_enough_and_its_halves_share_nothing():
    halves = [{one.name for one in half} for half in (masking_zoo.CALIBRATION, masking_zoo.HELD_OUT)]
    assert min(map(len, halves)) >= 6
    assert not halves[0] & halves[1]
    assert len(HONEST) >= 10


@pytest.mark.slow
@pytest.mark.parametrize("one", BROKEN.values(), ids=BROKEN)
def test_a_broken_defense_is_given_away_or_broken(one):
    found = audit(one.make(), "digits", eps=one.eps, n=N)
    if found.verdict != "valid":
        assert found.reasons
        return
    defended = evaluate(one.make(), "digits", "adaptive", eps=one.eps, n=N).robust_accuracy
    bare = evaluate(one.bare(), "digits", "autoattack", eps=one.eps, n=N).robust_accuracy
    assert float(defended) <= float(bare) + 0.05, f"valid, yet {defended} stand where {bare} do without the defense"


@pytest.mark.slow
@pytest.mark.parametrize("one", HONEST.values(), ids=HONEST)
def test_an_honest_network_is_not_suspected(one):
    if one.model is None and not (kit.ROOT / "manifest.json").is_file():
        pytest.skip("the kit is not here; set ROBUSTKIT_KIT to its folder")
    found = audit(one.make(), one.data(), defense=one.defense, norm=one.norm, eps=one.eps, n=one.n)
    assert found.verdict == "valid", found.reasons
