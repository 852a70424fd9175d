"""The voting judge on scripted draws: what it keeps, when it is sure, and its verdict, each worked out by hand."""

import math

import pytest
import torch
from torch import nn

from robustkit.api import ThreatModel
from robustkit.engine.judge import BROKEN, SURVIVED, VIOLATED
from robustkit.engine.voting import FIRST, MORE, VotingJudge, ask, clean, clean_by_vote
from robustkit.numerics.rows import spread
from robustkit.tasks import CLASSIFICATION

X, EPS, DRAWS = 0.4, 0.2, 3
ALL = torch.arange(3)
NAN = "n"


class Script:
    """A network whose answers to an image are written down: by its value a text, a character a draw.

    0 is right (class 0 leads by 1), 1 to 3 that class leads by the value of its digit, n is no number. It is no
    mixture, and refuses the images of `refuses`.
    """

    def __init__(self, answers, refuses=()):
        self.answers, self.asked, self.module, self.refuses = answers, {}, nn.Identity(), refuses

    def refused(self, images):
        return torch.tensor([f"{float(image.flatten()[0]):.2f}" in self.refuses for image in images])

    def logits(self, images):
        values = [f"{float(image.flatten()[0]):.2f}" for image in images]
        found = []
        for value in values:
            text = self.answers.get(value, "0")
            found.append(text[self.asked.get(value, 0) % len(text)])
        for value in set(values):
            self.asked[value] = self.asked.get(value, 0) + 1
        rows = {"0": [1, 0, 0, 0], "1": [0, 1, 0, 0], "2": [0, 0, 2, 0], "3": [0, 0, 0, 3], NAN: [math.nan] * 4}
        return torch.tensor([rows[letter] for letter in found], dtype=torch.float32)


def images(*values):
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone()


def court(answers, goal="bounded", target=None, draws=DRAWS):
    x, y = images(X, X, X), torch.zeros(3, dtype=torch.int64)
    return VotingJudge(Script(answers), ThreatModel("linf", EPS), x, y, target, goal, draws)


def fresh(*texts):
    """The networks of the draws that vote: draw k answers by the k-th character of a text for each value."""
    return lambda draw: Script({f"{value:.2f}": text[draw] for value, text in texts})


FOUR, TEN = "1" * FIRST, "1" * MORE


def test_a_candidate_is_sure_when_four_draws_and_four_fifths_of_fourteen_are_wrong():
    assert (FIRST, MORE) == (4, 10)
    judge = court({"0.50": FOUR + TEN, "0.51": FOUR + "1" * 8 + "00", "0.52": FOUR + "1" * 7 + "000"})
    assert judge.submit(ALL, images(0.50, 0.51, 0.52)).tolist() == [True, True, False]  # 14, 12 and 11 of 14
    assert judge.share.tolist() == pytest.approx([15 / 16, 13 / 16, 12 / 16])
    assert judge.broken.tolist() == judge.fooled.tolist() == [True, True, False]
    assert judge.ever.tolist() == [True] * 3
    few = court({"0.50": "1110", "0.51": "1000", "0.52": "0000"})
    assert not few.submit(ALL, images(0.50, 0.51, 0.52)).any()
    assert few.share.tolist() == pytest.approx([4 / 6, 2 / 6, 1 / 6])
    assert few.ever.tolist() == [True, True, False]
    assert few.reference.asked == {"0.50": 4, "0.51": 4, "0.52": 4}  # no more were spent on them
    assert few.verdicts().distance.tolist() == pytest.approx([0.1, 0.11, 0.12], abs=1e-6)


def test_its_margin_is_the_mean_over_the_draws_it_was_asked_last():
    judge = court({"0.50": "2222" + "1" * 5 + "0" * 5, "0.51": "1300", "0.52": "0"})
    judge.submit(ALL, images(0.50, 0.51, 0.52))
    assert judge.margin.tolist() == pytest.approx([0.0, (-1 - 3 + 1 + 1) / 4, 1.0])


def test_what_is_outside_is_asked_of_nobody_and_breaks_nothing():
    judge = court({"0.70": "1", "0.40": "0"})
    assert not judge.submit(ALL, images(0.70, 0.70, 0.45)).any()
    assert "0.70" not in judge.reference.asked
    assert judge.verdicts().outcome.tolist() == [VIOLATED, VIOLATED, SURVIVED]
    assert judge.ever.tolist() == [False] * 3
    assert judge.share.tolist() == pytest.approx([-1, -1, 1 / 6])


def test_outputs_that_are_no_numbers_are_a_violation_in_the_first_draws_and_in_the_later():
    judge = court({"0.50": "11n1", "0.51": FOUR + "1" * 9 + NAN, "0.52": FOUR + TEN})
    assert judge.submit(ALL, images(0.50, 0.51, 0.52)).tolist() == [False, False, True]
    assert judge.verdicts().outcome.tolist() == [VIOLATED, VIOLATED, BROKEN]
    assert judge.share.tolist() == pytest.approx([-1, -1, 15 / 16])
    assert judge.ever.tolist() == [False, False, True]
    assert list(judge.reasons) == ["the model's outputs are not finite"]


def test_the_candidate_that_is_more_often_wrong_is_kept_and_of_equals_that_of_lower_margin():
    judge = court({"0.45": "1100", "0.46": "1110", "0.47": "2100", "0.48": "1000", "0.49": "2200"})
    for value, kept in ((0.45, 0.45), (0.48, 0.45), (0.47, 0.47), (0.45, 0.47), (0.49, 0.49), (0.46, 0.46)):
        judge.submit(ALL[:1], images(value))
        assert float(judge.adv[0].flatten()[0]) == pytest.approx(kept)
        assert float(judge.distance[0]) == pytest.approx(kept - X, abs=1e-6)
    assert float(judge.share[0]) == pytest.approx(4 / 6)
    assert judge.share[1:].tolist() == [-1, -1]


def test_a_minimal_attack_s_nearest_sure_one_is_kept_and_none_beyond_eps_for_one_within():
    sure = FOUR + TEN
    judge = court({"0.90": sure, "0.80": sure, "0.55": "1000", "0.52": sure, "0.51": sure, "0.41": "1110"}, "minimal")
    steps = (
        (0.80, 0.80, False), (0.90, 0.80, False),  # both beyond eps: the nearer
        (0.55, 0.55, False),  # within eps, though seldom wrong
        (0.90, 0.55, False), (0.52, 0.52, True), (0.55, 0.52, False), (0.51, 0.51, True), (0.52, 0.51, True),
        (0.41, 0.51, False),  # nearer, and not sure
    )  # fmt: skip
    for value, kept, found in steps:
        assert judge.submit(ALL[:1], images(value)).tolist() == [found]
        assert float(judge.adv[0].flatten()[0]) == pytest.approx(kept), value
    assert judge.broken.tolist() == [True, False, False]


def test_before_one_is_sure_a_minimal_attack_keeps_the_one_that_is_more_often_wrong():
    judge = court({"0.45": "1100", "0.50": "1110", "0.47": "1000"}, "minimal")
    for value, kept in ((0.45, 0.45), (0.50, 0.50), (0.47, 0.50)):
        judge.submit(ALL[:1], images(value))
        assert float(judge.adv[0].flatten()[0]) == pytest.approx(kept)


def test_a_target_is_what_counts_as_wrong():
    target = torch.full((3,), 2)
    judge = court({"0.50": "2" * 14, "0.51": "1" * 14, "0.52": "2221"}, target=target)
    assert judge.submit(ALL, images(0.50, 0.51, 0.52)).tolist() == [True, False, False]
    assert judge.share.tolist() == pytest.approx([15 / 16, 1 / 6, 4 / 6])
    judge.saw(ALL, images(0.5, 0.5, 0.5), torch.eye(4)[torch.tensor([1, 2, 3])])
    assert judge.ever.tolist() == [True, True, True]


def test_what_an_attack_s_own_pass_shows_counts_for_the_worst_case_inside_the_ball():
    judge = court({})
    wrong = torch.eye(4)[torch.tensor([1, 1, 0])]
    judge.saw(ALL, images(0.61, 0.59, 0.59), wrong)
    assert judge.ever.tolist() == [False, True, False]
    judge.saw(torch.tensor([2]), images(0.5), wrong[:1])
    assert judge.ever.tolist() == [False, True, True]
    judge.saw(ALL[:1], torch.full((1, 1, 2, 3), 0.5), wrong[:1])  # no image of the batch
    assert judge.ever.tolist() == [False, True, True]


N = DRAWS + 10  # three that vote and ten for the mean


def test_fresh_draws_decide_and_a_tie_is_lost():
    judge = court({"0.50": FOUR + TEN, "0.51": FOUR + TEN, "0.52": "1000"}, draws=4)
    judge.submit(ALL, images(0.50, 0.51, 0.52))
    judge.settle(fresh((0.50, "1000" + "1" * 10), (0.51, "1100" + "0" * 10), (0.52, "2130" + "0" * 10)))
    assert judge.verdicts().outcome.tolist() == [SURVIVED, BROKEN, BROKEN]
    assert judge.patterns() == ["1000" + "1" * 10, "1100" + "0" * 10, "1110" + "0" * 10]
    assert judge.fooled.tolist() == [False, True, True]
    assert judge.decision.tolist() == [0, 0, 0]  # what the four say most often; the smallest of equals
    assert judge.margin.tolist() == pytest.approx([(3 - 11) / 14, (12 - 2) / 14, (11 - 6) / 14])


def test_the_decision_is_what_the_voting_draws_say_most_often():
    judge = court({"0.50": FOUR + TEN})
    judge.submit(ALL[:1], images(0.50))
    judge.settle(fresh((0.50, "221" + "3" * 10)))
    assert judge.decision.tolist() == [2, -1, -1]


def test_a_sample_without_a_candidate_has_no_votes():
    judge = court({"0.50": FOUR + TEN})
    judge.submit(ALL[:1], images(0.50))
    judge.settle(fresh((0.50, "1" * N), (X, "1" * N)))  # wrong on what was never submitted, too
    assert judge.verdicts().outcome.tolist() == [BROKEN, SURVIVED, SURVIVED]
    assert judge.patterns() == ["1" * N, "", ""]
    assert judge.margin.isnan().tolist() == [False, True, True]
    assert judge.ever.tolist() == [True, False, False]
    assert not judge.wrong[:, 1:].any()


def test_a_vote_that_is_no_number_breaks_nothing():
    judge = court({"0.50": FOUR + TEN, "0.51": FOUR + TEN})
    judge.submit(ALL[:2], images(0.50, 0.51))
    judge.settle(fresh((0.50, "11" + NAN + "1" * 10), (0.51, "1" * N)))
    assert judge.verdicts().outcome.tolist() == [VIOLATED, BROKEN, SURVIVED]
    assert judge.why() == ["the model's outputs are not finite", "", ""]
    assert judge.patterns()[0] == "0" * N
    assert judge.decision.tolist() == [-1, 1, -1]


def test_what_ended_beyond_eps_is_no_break_however_the_vote_went():
    judge = court({"0.90": FOUR + TEN}, "minimal")
    judge.submit(ALL[:1], images(0.90))
    judge.settle(fresh((0.90, "1" * N)))
    assert judge.verdicts().outcome.tolist() == [SURVIVED] * 3
    assert (judge.fooled.tolist(), judge.ever.tolist()) == ([True, False, False], [False] * 3)
    assert float(judge.verdicts().distance[0]) == pytest.approx(0.5)


def test_an_image_that_changed_since_it_was_judged_is_no_break():
    judge = court({"0.50": FOUR + TEN, "0.51": FOUR + TEN})
    judge.submit(ALL[:2], images(0.50, 0.51))
    judge.adv[0] += 0.3
    judge.settle(fresh((0.80, "1" * N), (0.51, "1" * N)))
    assert judge.verdicts().outcome.tolist() == [VIOLATED, BROKEN, SURVIVED]


def test_revoking_takes_back_the_votes_too():
    judge = court({"0.50": FOUR + TEN})
    judge.submit(ALL[:1], images(0.50))
    judge.settle(fresh((0.50, "1" * N)))
    judge.revoke("changed")
    assert judge.verdicts().outcome.tolist() == [VIOLATED] * 3
    assert not judge.ever.any()
    assert not judge.wrong.any()


def test_clean_images_by_one_pass_and_by_vote():
    x, y = images(0.1, 0.2, 0.3), torch.zeros(3, dtype=torch.int64)
    once = clean(Script({"0.20": "2", "0.30": NAN}), x, y, CLASSIFICATION)
    assert (once.correct[:2].tolist(), once.prediction[:2].tolist()) == ([True, False], [0, 2])
    assert (once.margin[:2].tolist(), once.sound.tolist(), once.draws) == ([1, -2], [True, True, False], [])
    assert (once.refused.any(), once.expected.isnan().all()) == (False, True)
    refusing = clean(Script({"0.20": "2"}, refuses=("0.10", "0.20")), x, y, CLASSIFICATION)
    assert refusing.refused.tolist() == [True, True, False]
    assert refusing.correct.tolist() == [False, False, True]  # what is refused clean is not right
    texts = (0.1, "001" + "1" * 10), (0.2, "122" + "0" * 10), (0.3, "000" + NAN * 10)
    voted = clean_by_vote(fresh(*texts), DRAWS, x, y, CLASSIFICATION)
    assert (voted.correct.tolist(), voted.prediction.tolist()) == ([True, False, True], [0, 2, 0])
    assert voted.sound.tolist() == [True, True, False]
    assert voted.draws[:2] == ["001" + "1" * 10, "111" + "0" * 10]
    assert voted.margin[:2].tolist() == pytest.approx([(2 - 11) / N, (10 - 1 - 2 - 2) / N])
    assert voted.logits[0].tolist() == pytest.approx([2 / N, 11 / N, 0, 0])
    answers, logits = ask(fresh(*texts), 2, x, y, None)
    assert (answers.wrong.shape, logits.shape) == ((2, 3), (2, 3, 4))
    assert spread(answers.margin, x).shape == (3, 1, 1, 1)
