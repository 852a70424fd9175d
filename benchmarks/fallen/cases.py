"""The fallen one by one: which network and settings, in which ball, what the sheet's attack is, what was published.

Settings are those that mask at this scale, where any do (`note` says what was changed, or that nothing masks).
Published figures are robust accuracies in %, each from a paper or a record that was seen; where none was, none is told.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from robustkit_attacks.apgd import APGD
from robustkit_attacks.nes import NES
from robustkit_attacks.pgd import PGD
from robustkit_attacks.surrogate_swap import SurrogateSwap
from robustkit_defenses.fallen.anti_adversary import AntiAdversary
from robustkit_defenses.fallen.binarised import Binarised
from robustkit_defenses.fallen.decoder_projection import DecoderProjection
from robustkit_defenses.fallen.diffusion import Diffusion
from robustkit_defenses.fallen.dknn import DkNN
from robustkit_defenses.fallen.ecoc import ECOC
from robustkit_defenses.fallen.empir import EMPIR
from robustkit_defenses.fallen.hedge import Hedge
from robustkit_defenses.fallen.jump import Jump
from robustkit_defenses.fallen.k_wta import KWinners
from robustkit_defenses.fallen.lid import LID
from robustkit_defenses.fallen.magnet import MagNet
from robustkit_defenses.fallen.me_net import MENet
from robustkit_defenses.fallen.mean_sparse import MeanSparse
from robustkit_defenses.fallen.mixture import RandomMixture
from robustkit_defenses.fallen.mixup_inference import MixupInference
from robustkit_defenses.fallen.odds import Odds
from robustkit_defenses.fallen.quilting import Quilting
from robustkit_defenses.fallen.sap import SAP
from robustkit_defenses.fallen.thermometer import Thermometer
from robustkit_defenses.fallen.tv_minimisation import TVMinimisation
from torch import nn

from benchmarks.fallen import networks as nets
from benchmarks.fallen.arc import ARC
from benchmarks.fallen.excess import Excess
from benchmarks.fallen.guides import Guides
from benchmarks.fallen.latent import LatentSearch
from benchmarks.fallen.logit_matching import LogitMatching
from robustkit.api import Attack, Expected
from robustkit.models.ensembles import Ensemble

DIGITS = 0.15
# A pass costs many of the network's, or decisions are voted on: half as many images, and a shorter AutoAttack.
HEAVY = frozenset({
    "tv-minimisation", "quilting", "sap", "decoder-projection", "odds", "me-net", "mixup-inference", "hedge",
    "diffusion", "magnet",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Case:
    """A defense that fell. `defense` makes its settings from `dress=`; without one the network itself is the defense.

    `expected`: the number is the expected accuracy over draws, not a vote: of a mixture whose largest member outvotes.
    """

    title: str
    masks: str
    network: Callable[[], nn.Module]
    defense: Callable[..., Any] | None
    by_hand: tuple[Attack, ...]
    published: str
    note: str = ""
    data: str = "digits"
    eps: float = DIGITS
    expected: bool = False


def swap(only: str, steps: int = 100, restarts: int = 2, draws: int = 1) -> Attack:
    """PGD on the margin of a stand-in, judged on the defense."""
    made = SurrogateSwap(only, steps=steps, direct=0, restarts=restarts)
    return Expected(made, draws) if draws > 1 else made


def with_file(kind: Callable[..., Any], name: str, *given: Any, data: str = "digits", tag: str = "", **fixed: Any):
    """Settings with what they fit on the training images of the network's data."""

    def make(dress: str) -> Any:
        ready = [one() if callable(one) else one for one in given]  # a network, or default settings
        return kind(fitted=nets.fit(name, *ready, data=data, tag=tag), dress=dress, **fixed)

    return make


def digits() -> nn.Module:
    return nets.bundled("digits-cnn")


def digits_at() -> nn.Module:
    return nets.bundled("digits-cnn-at")


def scenes() -> nn.Module:
    return nets.bundled("scenes-cnn")


def mixture() -> nn.Module:
    first = digits_at()
    return Ensemble([first, nets.second_member(first, DIGITS)]).eval()


CASES: dict[str, Case] = {
    "thermometer": Case(
        "Thermometer code", "discrete, misleading",
        lambda: nets.learnt("thermometer", lambda: nets.digits_like(channels=16), "behind:defense=thermometer"),
        lambda dress: Thermometer(dress=dress), (swap("ramp", restarts=4),),
        "CIFAR-10, 8/255: 79 with adversarial training → 30; without it 0",
        "comparisons without a backward pass, as published; a ramp that is too wide hides little here",
    ),
    "tv-minimisation": Case(
        "TV minimisation", "optimisation, random", scenes,
        lambda dress: TVMinimisation(unrolled=3, dress=dress), (swap("identity", draws=8, restarts=1), swap("bare")),
        "ImageNet, L2 .06: 70 → 0", "gradients of the first 3 of 30 iterations", "scenes", 16 / 255,
    ),
    "quilting": Case(
        "Image quilting", "shattered", scenes,
        with_file(Quilting, "quilting", data="scenes", soft=1e-4), (swap("identity", restarts=2), swap("bare")),
        "ImageNet, L2 .06: 70 → 0", "soft weights of the nearest tiles, one of which has nearly all", "scenes", 0.1,
    ),
    "sap": Case(
        "Stochastic activation pruning", "random, heavy-tailed", digits, lambda dress: SAP(dress=dress),
        (swap("not-pruned"), Expected(PGD(60, loss="margin"), 10)), "CIFAR-10: 51 at 4/255 → 0",
    ),
    "decoder-projection": Case(
        "Projection on a decoder (Defense-GAN)", "optimisation, no gradient", digits,
        with_file(DecoderProjection, "decoder-projection"),
        (LatentSearch(), swap("encoder"), swap("identity", 60, 1), swap("bare", 60, 1)), "MNIST, L2 .005: 92 → 55",
        "the hand-made attack is not known to be the strongest",
    ),
    "lid": Case(
        "Local intrinsic dimensionality", "detector", digits, with_file(LID, "lid", digits, LID),
        (swap("bare", 200, 4),), "CIFAR-10, 8/255: → 5",
    ),
    "k-wta": Case(
        "k-winners-take-all", "shattered",
        lambda: nets.learnt("k-wta", lambda: nets.digits_like(2), "behind:defense=(k-wta:share=0.04)"),
        lambda dress: KWinners(0.04, dress=dress), (NES(30, 40, 0.2), swap("smoothed", 60, 1)),
        "CIFAR-10, .031, with adversarial training: 52.4 → 18.5", "4 % of the values stay; twice the width",
    ),
    "jump": Case(
        "Jumping activation", "discrete",
        lambda: nets.learnt(
            "jump", nets.digits_like, *(f"behind:defense=(jump:height={height})" for height in (1, 3, 8, 20)), epochs=10
        ),
        lambda dress: Jump(dress=dress), (NES(30, 40, 0.2), swap("sigmoid-step")), "", "steps of 20",
    ),
    "odds": Case(
        "The odds are odd", "detector that corrects", digits, with_file(Odds, "odds", digits, Odds(draws=16), draws=16),
        (LogitMatching(), swap("noisy-mean", 40, 1)), "CIFAR-10, 8/255: clean 99.5 → 0.0", "16 draws instead of 256",
    ),
    "empir": Case(
        "EMPIR, mixed precision", "votes",
        lambda: nets.learnt("empir", nets.ensemble(nets.digits_like, 3), "behind:defense=empir"),
        lambda dress: EMPIR(mean=0.0, dress=dress), (swap("mean-probs", 100, 4),),
        "CIFAR-10: 48.51 under C&W (float 13.38), 13.55 under PGD (10.69)", "counts of votes alone, no probabilities",
    ),
    "ecoc": Case(
        "Error-correcting codes", "vanishing",
        lambda: nets.learnt("ecoc", nets.ensemble(lambda: nets.small(4), 8), "behind:defense=ecoc,through=decoded"),
        lambda dress: ECOC(sharpness=20.0, dress=dress), (swap("decoded", 200, 4),), "", "tanh(20·bits)",
    ),
    "me-net": Case(
        "ME-Net", "shattered, random",
        lambda: nets.learnt("me-net", nets.digits_like, "behind:defense=me-net"),
        lambda dress: MENet(back="svd", dress=dress), (swap("identity", 60, 1, 20), swap("bare")),
        "CIFAR-10, 8/255, with adversarial training: 49.7 under BPDA → 26.0 with EOT", "derivatives of the SVD",
    ),
    "mixup-inference": Case(
        "Mixup inference", "random",
        lambda: nets.learnt(
            "mixup", nets.digits_like,
            f"behind:defense=(mixup-inference:mixes=1,share=0.6,fitted={nets.fit('mixup-inference', 10)})",
        ),
        with_file(MixupInference, "mixup-inference", 10, mixes=1, share=0.6),
        (swap("mean-image"), swap("itself", 60, 1, 16)), "", "one mix instead of 15",
    ),
    "feature-scattering": Case(
        "Feature scattering", "misleading loss",
        lambda: nets.learnt(
            "feature-scattering", nets.digits_like, f"feature-scattering:eps={DIGITS},smoothing=0.5"
        ),
        None, (APGD("dlr-targeted", 100, 2), APGD("margin-targeted", 100), NES(30, 50)),
        "CIFAR-10, 8/255: 60.6 → 36.64",
        "an ordinary network, alike in every dress; it does not mask here: an honest control",
    ),
    "anti-adversary": Case(
        "Anti-adversary layer", "misleading", digits, lambda dress: AntiAdversary(dress=dress), (swap("bare"),),
        "CIFAR-10, .031, 100 images: 81 → 62, as without it",
    ),
    "hedge": Case(
        "Hedge defense", "optimisation, random", digits_at,
        lambda dress: Hedge(10, DIGITS, DIGITS / 4, dress=dress), (swap("bare"), swap("itself", 30, 1, 3)),
        "CIFAR-10, 8/255: 54.1 (transferred) → 45.8, as without it", "10 steps; on an adversarially trained network",
    ),
    "mean-sparse": Case(
        "MeanSparse", "dead zones", digits_at,
        with_file(MeanSparse, "mean-sparse", digits_at, alpha=0.3), (swap("straight-through", 200, 4), swap("bare")),
        "CIFAR-10, 8/255: 75.28 → 73.10 (base 73.71)", "gaps of a point or two, as in the original",
    ),
    "diffusion": Case(
        "Diffusion purification", "iterative, random", digits, with_file(Diffusion, "diffusion"),
        (swap("three-steps", 60, 1, 10), swap("identity", 30, 1, 5)), "",
        "50 steps, from the 15th; no gradient of its own",
    ),
    "magnet": Case(
        "MagNet, rejecting autoencoders", "detector, random", digits, with_file(MagNet, "magnet", digits, MagNet),
        (Excess(), swap("autoencoder-1", 60, 1)), "CIFAR-10, L2 .5: 83 of what was right → 0",
    ),
    "dknn": Case(
        "Deep k-nearest neighbours", "discrete", digits, with_file(DkNN, "dknn", digits),
        (Guides(), swap("soft"), swap("head")), "",
    ),
    "random-mixture": Case(
        "Boosted randomised mixture, ARC", "random, misleading", mixture, lambda dress: RandomMixture(dress=dress),
        (ARC(), swap("expected")), "CIFAR-10, 8/255, ResNet-18: 61.61 → 47.43 (adversarial training alone 51.73)",
        "weights 0.8 and 0.2; the number is the expected accuracy", expected=True,
    ),
    "binarised": Case(
        "Binarised network", "discrete, vanishing",
        lambda: nets.learnt("binarised", nets.digits_like, "behind:defense=binarised,through=soft"),
        lambda dress: Binarised(dress=dress), (swap("soft", 200, 4),), "", "logits times 1000: sums without a scale",
    ),
}  # fmt: skip
