import math

import pytest
import torch
from torch import Tensor, nn

from robustkit.api import ThreatModel
from robustkit.engine.judge import BROKEN, SURVIVED, VIOLATED, Judge
from robustkit.models.oracle import Network


class Bright(nn.Module):
    """Class 1 if the mean is above one half, class 2 if above 0.9, else class 0."""

    def forward(self, x: Tensor) -> Tensor:
        mean = x.flatten(1).mean(1)
        return torch.stack([torch.zeros_like(mean), mean - 0.5, 3 * (mean - 0.9) + 0.4], 1)


class Broken(Bright):
    """As above, but images with a bright first pixel make it say NaN."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.where(x.flatten(1)[:, :1] > 0.9, math.nan, super().forward(x))


N = 3
EPS = 0.2


def judge(goal="bounded", norm="linf", eps=EPS, target=None, model=None, value=0.4) -> Judge:
    network = Network(model or Bright(), 4, torch.device("cpu"))
    x = torch.full((N, 1, 2, 2), value)
    return Judge(network, ThreatModel(norm, eps), x, torch.zeros(N, dtype=torch.int64), target, goal)


def images(*values: float) -> Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone()


ALL = torch.arange(N)


def test_a_valid_break_is_confirmed_and_kept_with_its_distance_and_margin():
    court = judge()
    assert court.submit(ALL, images(0.55, 0.45, 0.4)).tolist() == [True, False, False]
    verdicts = court.verdicts()
    assert verdicts.outcome.tolist() == [BROKEN, SURVIVED, SURVIVED]
    assert verdicts.distance.dtype == verdicts.margin.dtype == torch.float64
    assert verdicts.distance.tolist() == pytest.approx([0.15, 0.05, 0.0], abs=1e-6)
    assert verdicts.margin.tolist() == pytest.approx([-0.05, 0.05, 0.1], abs=1e-6)
    assert torch.equal(verdicts.adv, images(0.55, 0.45, 0.4))


def test_before_any_candidate_everything_has_survived_and_nothing_is_known():
    verdicts = judge().verdicts()
    assert verdicts.outcome.tolist() == [SURVIVED] * N
    assert verdicts.distance.isnan().all()
    assert verdicts.margin.isnan().all()


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (0.7, "an image outside the ball"),
        (-0.1, "an image outside the box"),
        (1.1, "an image outside the box"),
        (math.nan, "an image that is not finite"),
        (math.inf, "an image that is not finite"),
    ],
)
def test_what_is_outside_the_threat_model_is_a_violation_of_that_sample_only(value, reason):
    court = judge()
    assert court.submit(ALL, images(0.55, value, 0.45)).tolist() == [True, False, False]
    assert court.verdicts().outcome.tolist() == [BROKEN, VIOLATED, SURVIVED]
    assert {text: samples.tolist() for text, samples in court.reasons.items()} == {reason: [1]}
    assert court.verdicts().distance.isnan().tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("candidate", "said"),
    [
        (torch.zeros(N, 1, 2, 3), "(3, 1, 2, 3)"),
        (torch.zeros(N - 1, 1, 2, 2), "(2, 1, 2, 2)"),
        (torch.zeros(1, 1, 2, 2), "(1, 1, 2, 2)"),
        (torch.zeros(N, 1, 2, 2, dtype=torch.uint8), "torch.uint8"),
        (torch.zeros(N, 1, 2, 2, dtype=torch.bool), "torch.bool"),
        (torch.zeros(N, 1, 2, 2, dtype=torch.complex64), "torch.complex64"),
        (None, "NoneType"),
        ([[0.5]], "list"),
    ],
)
def test_what_is_no_batch_of_images_is_a_violation_of_all_its_samples(candidate, said):
    court = judge()
    assert not court.submit(ALL, candidate).any()
    assert court.verdicts().outcome.tolist() == [VIOLATED] * N
    assert said in next(iter(court.reasons))


def test_a_valid_break_outweighs_a_violation_before_and_after_it():
    court = judge()
    court.submit(ALL, images(0.99, 0.55, 0.99))
    court.submit(ALL, images(0.55, 0.99, 0.99))
    assert court.verdicts().outcome.tolist() == [BROKEN, BROKEN, VIOLATED]
    assert torch.equal(court.verdicts().adv[:2], images(0.55, 0.55))


def test_a_bounded_attacks_break_of_lowest_margin_is_kept():
    court = judge()
    for value in (0.45, 0.52, 0.58, 0.55, 0.41):
        court.submit(ALL, images(value, value, value))
    assert torch.equal(court.verdicts().adv, images(0.58, 0.58, 0.58))
    assert court.verdicts().outcome.tolist() == [BROKEN] * N


def test_without_a_break_the_last_valid_candidate_is_reported():
    court = judge()
    court.submit(ALL, images(0.48, 0.48, 0.48))
    court.submit(ALL, images(0.45, 0.99, 0.41))
    assert court.verdicts().distance.tolist() == pytest.approx([0.05, 0.08, 0.01], abs=1e-6)


def test_a_minimal_attacks_nearest_break_is_kept_and_only_within_eps_it_counts():
    court = judge("minimal")
    assert court.submit(ALL, images(0.9, 0.9, 0.45)).tolist() == [False, False, False]
    assert court.submit(ALL, images(0.7, 0.95, 0.41)).tolist() == [False, False, False]
    assert court.verdicts().distance.tolist() == pytest.approx([0.3, 0.5, math.nan], abs=1e-6, nan_ok=True)
    assert court.verdicts().outcome.tolist() == [SURVIVED] * N
    assert court.submit(ALL, images(0.52, 0.8, 0.39)).tolist() == [True, False, False]
    assert court.submit(ALL, images(0.55, 0.42, 0.99)).tolist() == [True, False, False]
    verdicts = court.verdicts()
    assert verdicts.outcome.tolist() == [BROKEN, SURVIVED, SURVIVED]
    assert verdicts.distance.tolist() == pytest.approx([0.12, 0.4, 0.59], abs=1e-6)
    assert not court.reasons


def test_a_minimal_attack_may_not_leave_the_box():
    court = judge("minimal")
    court.submit(ALL, images(1.5, 0.9, math.nan))
    assert court.verdicts().outcome.tolist() == [VIOLATED, SURVIVED, VIOLATED]


def test_a_break_beyond_eps_is_no_break():
    for goal, outcome in (("bounded", VIOLATED), ("minimal", SURVIVED)):
        court = judge(goal, "l2", 0.2)
        assert not court.submit(ALL, images(0.55, 0.55, 0.55)).any()  # 0.15 in each of four pixels is 0.3
        assert court.verdicts().outcome.tolist() == [outcome] * N


def test_distances_are_judged_up_to_the_stated_slack():
    court = judge(eps=0.25, value=0.375)
    exact = 0.375 + 0.25
    assert court.submit(ALL, images(exact, exact + 2e-7, exact + 1e-6)).tolist() == [True, True, False]


def test_a_target_is_reached_by_that_class_only():
    court = judge(eps=0.6, target=torch.full((N,), 2))
    assert court.submit(ALL, images(0.6, 0.99, 0.4)).tolist() == [False, True, False]
    verdicts = court.verdicts()
    assert verdicts.outcome.tolist() == [SURVIVED, BROKEN, SURVIVED]
    assert (verdicts.margin < 0).tolist() == [False, True, False]


def test_some_samples_can_be_submitted_in_any_order():
    court = judge()
    assert court.submit(torch.tensor([2, 0]), images(0.55, 0.45)).tolist() == [True, False]
    assert court.verdicts().outcome.tolist() == [SURVIVED, SURVIVED, BROKEN]
    assert torch.equal(court.verdicts().adv[2:], images(0.55))
    assert court.submit(ALL[:0], images()).shape == (0,)


def test_of_several_candidates_of_a_sample_at_once_the_best_is_kept():
    court = judge()
    samples = torch.tensor([1, 1, 0, 1, 0, 1])
    found = court.submit(samples, images(0.52, 0.58, 0.45, 0.45, 0.99, 0.55))
    assert found.tolist() == [True, True, False, False, False, True]
    assert court.verdicts().outcome.tolist() == [VIOLATED, BROKEN, SURVIVED]
    assert torch.equal(court.verdicts().adv[1:2], images(0.58))


def test_candidates_are_judged_as_copies_and_without_their_graph():
    court = judge()
    candidate = images(0.55, 0.55, 0.55).requires_grad_(True)
    court.submit(ALL, candidate)
    with torch.no_grad():
        candidate.fill_(0.9)
    assert torch.equal(court.verdicts().adv, images(0.55, 0.55, 0.55))
    assert not court.verdicts().adv.requires_grad


def test_other_floating_point_types_are_judged_after_rounding_to_the_images_own():
    court = judge()
    assert court.submit(ALL, images(0.55, 0.45, 0.7).double()).tolist() == [True, False, False]
    assert court.verdicts().adv.dtype == torch.float32
    assert court.submit(ALL, images(0.45, 0.55, 0.45).half()).tolist() == [False, True, False]


def test_tampering_with_what_is_lent_is_seen_and_changes_nothing_of_the_judges():
    court = judge(target=torch.full((N,), 1))
    x, y, target = court.lent()
    assert court.unchanged(x, y, target)
    for tensor in (x, y, target):
        before = tensor.clone()
        tensor.add_(1)
        assert not court.unchanged(x, y, target)
        tensor.copy_(before)
    assert court.unchanged(x, y, target)
    x.fill_(0.9)
    y.fill_(2)
    assert not court.submit(ALL, x).any()
    assert court.verdicts().outcome.tolist() == [VIOLATED] * N
    assert torch.equal(court.x, images(0.4, 0.4, 0.4))


def test_the_judge_keeps_its_own_copies_of_the_images_it_was_given():
    x, y = torch.full((N, 1, 2, 2), 0.4), torch.zeros(N, dtype=torch.int64)
    court = Judge(Network(Bright(), 4, torch.device("cpu")), ThreatModel("linf", EPS), x, y, None, "bounded")
    x.fill_(0.99)
    y.fill_(1)
    assert court.submit(ALL, images(0.55, 0.45, 0.45)).tolist() == [True, False, False]


def test_outputs_that_are_not_finite_break_nothing_and_are_named():
    court = judge(eps=0.6, model=Broken())
    assert court.submit(ALL, images(0.99, 0.55, 0.45)).tolist() == [False, True, False]
    assert court.verdicts().outcome.tolist() == [VIOLATED, BROKEN, SURVIVED]
    assert "the model's outputs are not finite" in court.reasons
    assert court.verdicts().margin.isnan().tolist() == [True, False, False]


def test_a_misclassified_original_is_broken_by_itself():
    court = judge(value=0.6)
    assert court.submit(ALL, court.x).all()
    assert court.verdicts().distance.tolist() == [0.0] * N


def test_revoking_takes_back_every_verdict():
    court = judge()
    court.submit(ALL, images(0.55, 0.45, 0.99))
    court.revoke("the network was changed")
    assert court.verdicts().outcome.tolist() == [VIOLATED] * N
    assert court.verdicts().distance.isnan().all()
    assert court.verdicts().margin.isnan().all()


def test_before_any_candidate_there_is_no_decision_and_nothing_to_explain():
    court = judge()
    assert court.verdicts().decision.tolist() == [-1] * N
    assert court.submit(ALL, images(0.55, 0.45, 0.4)).tolist() == [True, False, False]
    assert court.reasons == {}
    assert court.why() == [""] * N
    assert court.verdicts().decision.tolist() == [1, 0, 0]


def test_why_names_the_rules_that_were_broken_but_not_on_a_sample_that_is_broken_all_the_same():
    court = judge()
    court.submit(ALL, images(0.99, 0.99, 1.5))
    court.submit(ALL, images(0.55, -0.1, 0.41))
    far = "an image outside the ball, by 0.39 (eps is 0.2, the images came in float32)"  # 0.99 - 0.4 - 0.2
    assert court.why() == ["", f"an image outside the box\n{far}", "an image outside the box"]


def test_one_pixel_that_is_no_number_is_named_so():
    court = judge()
    candidate = images(0.55, 0.45, 0.45)
    candidate[1, 0, 0, 1] = math.nan
    court.submit(ALL, candidate)
    assert court.why() == ["", "an image that is not finite", ""]


def test_what_was_kept_is_measured_again_when_no_attack_is_at_work():
    court = judge()
    court.submit(ALL[:2], images(0.55, 0.56))  # the third never gets a candidate
    court.confirm_again()
    assert court.verdicts().outcome.tolist() == [BROKEN, BROKEN, SURVIVED]
    assert court.reasons == {}
    court.adv[1] += 0.01  # inside still, and not what was judged
    court.adv[0] += 0.3
    court.confirm_again()
    assert court.verdicts().outcome.tolist() == [VIOLATED, BROKEN, SURVIVED]
    assert court.why() == ["an image kept to the rules only while the attack ran", "", ""]
    assert court.verdicts().distance.tolist() == pytest.approx([math.nan, 0.17, math.nan], abs=1e-6, nan_ok=True)
    assert court.verdicts().decision.tolist() == [-1, 1, -1]
    assert court.fooled.tolist() == [False, True, False]
