"""Is the model fed what it was trained on? Clean accuracy as given against other settings of its input, with evidence.

A model that is normalised twice, or not at all, that wants 0–255 or BGR, loses accuracy silently, and every robust
accuracy measured on it is worth nothing. The doctor tries the usual mistakes on a few images and speaks only where
another setting is clearly better: at least MARGIN more of the images right, with an exact paired (McNemar) test below
ALPHA after Bonferroni's correction for all that was tried. Settings that do not look better on the first images are
dropped early; that makes findings rarer, never more frequent.

A model that is randomised or behind a defense is looked at as it is only: another setting of its input may look better
because it drowns the noise, or passes by the defense, and its advice would switch that off.

Of a model that normalises, the mean/std of other datasets are tried in place of its own. What it cannot see: mean/std
that differ a little (ImageNet's and CIFAR-10's change some predictions in a hundred). On images that are corrupted on
purpose another setting may truly be better, such as more contrast; the engine asks for no doctor there.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from robustkit.api import Images, Labels, Logits, ModelCard
from robustkit.doctor import settings, trials
from robustkit.doctor.settings import MeanStd, Setting
from robustkit.doctor.trials import ALPHA, GLANCE, LOOKS, MARGIN, Bench, Sample, Trial, spread
from robustkit.errors import UsageError
from robustkit.models import capabilities
from robustkit.models.acceptance import first_call
from robustkit.models.examination import differs, lent, tile_width
from robustkit.models.opening import card_flags
from robustkit.models.oracle import Network, Noise
from robustkit.models.outputs import check_form, sum_to_one
from robustkit.models.state import check_usable, modes, restore, snapshot
from robustkit.stats import Proportion

__all__ = [
    "ALPHA",
    "KINDS",
    "LOOKS",
    "MARGIN",
    "Diagnosis",
    "Finding",
    "Trial",
    "diagnose",
    "enough",
    "examine_input",
    "spread",
]

LEFT_OUT = (
    "the model is {}, so no other setting of its input was tried: what looks better may only pass by that; for the "
    "input's sake look at the network without it"
)
KINDS = ("normalisation", "model-outputs", "labels", "chance", "batch-norm")


class Finding(NamedTuple):
    """Something that is clearly wrong: a kind of KINDS, and the evidence with what to do in one sentence."""

    kind: str
    message: str

    def to_json(self) -> dict[str, str]:
        """As a flag of a record."""
        return self._asdict()


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What was tried, what is wrong, and what is only worth knowing. The first trial is the model as given."""

    trials: Sequence[Trial]
    findings: Sequence[Finding] = ()
    notes: Sequence[str] = ()

    @property
    def healthy(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def flags(self) -> list[Mapping[str, str]]:
        """The findings as flags of a run's record."""
        return [finding.to_json() for finding in self.findings]

    def to_json(self) -> dict[str, Any]:
        """As JSON data."""
        return {
            "healthy": self.healthy,
            "trials": [trial.to_json() for trial in self.trials],
            "findings": [finding.to_json() for finding in self.findings],
            "notes": list(self.notes),
        }


def enough(total: int, image: Tensor) -> list[int]:
    """Where the images lie that an evaluation spends: at most 1,024 of so many, of large ones 256, see `spread`."""
    return spread(total, LOOKS[1] if trials.large(image) else 4 * LOOKS[1])


def diagnose(
    module: nn.Module,
    x: Images,
    y: Labels,
    card: ModelCard | None = None,
    *,
    outputs: str = "logits",
    tile: int | None = None,
    thorough: bool = False,
    defended: bool = False,
) -> Diagnosis:
    """Compare a model's clean accuracy as given with other settings of its input, and look at its outputs.

    Nothing of the caller's is changed: modes, weights, buffers and global random generators are put back.

    Args:
        module: on its device, taking images in [0,1].
        x: (n, channels, height, width), in any order; 256 are plenty, below 15 nothing can be established.
        y: labels, shape (n,).
        card: what is known of the model; its mean/std are tried too.
        outputs: what the model is declared to return, "logits" or "probs".
        tile: width of the batches the model sees; None is what an evaluation takes.
        thorough: try every setting on all images, even where it can hardly be better.
        defended: a defense stands before the model.

    Raises:
        UsageError: if there are no images, or the model does not turn them into (n, classes) outputs.
    """
    if not len(x):
        raise UsageError("there are no images to look at; give at least one")
    check_usable(module)
    held = next(itertools.chain(module.parameters(), module.buffers()), x)
    network = Network(module, tile or tile_width(x[0].numel(), held.device), held.device, noise=Noise("doctor"))
    order = torch.tensor(spread(len(x), len(x)))
    training = [part for part, in_training in modes(module) if in_training]
    with lent(module):
        network = _accepted(network, x)
        randomised = capabilities.randomised(module) or differs(network, [x[: network.tile]])
        found = examine_input(
            network,
            lambda start, stop: (x[order[start:stop]], y[order[start:stop]]),
            len(x),
            card,
            outputs,
            thorough=thorough,
            as_it_is="randomised" if randomised else "behind a defense" if defended else "",
        )
        found = replace(found, notes=[*found.notes, *(str(flag["message"]) for flag in card_flags(card))])
        if not any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in training):
            return found
        weights = snapshot(module)
        try:
            some = order[: LOOKS[1]]
            trial, findings = _in_train_mode(network, training, x[some], y[some])
        finally:
            restore(module, weights)
    return replace(found, trials=[*found.trials, trial], findings=[*found.findings, *findings])


def examine_input(
    network: Network,
    sample: Sample,
    n: int,
    card: ModelCard | None = None,
    outputs: str = "logits",
    *,
    thorough: bool = False,
    as_it_is: str = "",
) -> Diagnosis:
    """The same for a network that is in eval mode already, fetching images only as they are needed.

    A model that gets 94 % of the first 64 images right costs these 64 forward passes. Another costs 64 for each of
    about ten settings (16 where images are large); only what looks better, or is another mean/std for one, is looked at
    on 256, then on all.

    Args:
        network: called as it is; a randomised one should have noise of its own (`Network.seeded`).
        sample: the images and labels from one position to another; not sorted, the first have to stand for all.
        n: how many there are, at least 1.
        card: what is known of the model.
        outputs: what the model is declared to return.
        thorough: try every setting on all images.
        as_it_is: why no other setting of its input is to be tried: it is "randomised", or "behind a defense".
    """
    bench = Bench(network, sample, n)
    own = settings.inside(network.module, bench.channels)
    declared = settings.of_card(card, bench.channels)
    candidates = [] if as_it_is else settings.first_look(bench.channels, declared, own[0] if own else None)
    tests = 2 * (len(candidates) + 3)  # three readings of the labels; the first look decides nothing, two others do

    alive: list[Setting] = []
    readings: list[Trial] = []
    if thorough:
        alive = candidates
        bench.fetch(n)
        bench.complete(alive)
        readings = trials.of_labels(bench.predicted, bench.y, tests)
    elif bench.could_improve(tests):
        alive = bench.survivors(candidates)
        readings = _look_closer(bench, alive, tests)
    tried = {setting: bench.trial(setting, tests) for setting in candidates if setting in bench.right}
    findings = list(_outputs(bench.logits, "probs" if network.probabilities else outputs))
    clear = [setting for setting in alive if tried[setting].clear]
    # A wrong input confuses classes in a pattern of its own, which a renaming fits in part: it must explain more.
    explained = max([0.5, *(float(tried[setting].right) for setting in clear)])
    renamed = [reading for reading in readings if reading.clear and float(reading.right) > explained]
    if clear and not renamed:
        near = settings.like(max(clear, key=bench.hits), bench.channels, own[0] if own else None)
        bench.complete(near)
        tried |= {setting: bench.trial(setting, tests + len(near)) for setting in near}
        best = max((*clear, *near), key=bench.hits)
        rivals = [other for other in dict.fromkeys((*clear, *near)) if other != best and bench.rival(other, best)]
        findings.append(Finding("normalisation", _evidence(bench.given, tried[best], best.advice, rivals)))
    if renamed:
        findings.append(Finding("labels", _evidence(bench.given, renamed[0], "model and data number classes unlike")))
    if bench.like_guessing and not bench.one_class and not clear and not renamed:
        findings.append(Finding("chance", _guessing(bench.given.right, bench.classes)))
    notes = [*([LEFT_OUT.format(as_it_is)] if as_it_is else []), *_notes(own, declared, bench)]
    return Diagnosis([bench.given, *tried.values(), *renamed], findings, notes)


def _look_closer(bench: Bench, alive: Sequence[Setting], tests: int) -> list[Trial]:
    """Have more images while something looks better on them but is not clear; gives the readings of the labels."""
    readings = trials.of_labels(bench.predicted, bench.y, tests)
    if not alive and not bench.like_guessing and all(trial.better - trial.worse < 2 for trial in readings):
        return readings
    for stop in (LOOKS[1], bench.n):
        bench.fetch(min(stop, bench.n))
        bench.complete(alive)
        readings = trials.of_labels(bench.predicted, bench.y, tests)
        suspects = [*(bench.trial(setting, tests) for setting in alive), *readings]
        if any(trial.clear for trial in suspects) or not any(trial.suspicious for trial in suspects):
            break
    return readings


def _in_train_mode(
    network: Network, training: Sequence[nn.Module], x: Images, y: Labels
) -> tuple[Trial, Sequence[Finding]]:
    """The model in the mode it was given in: if it is far better than in eval mode, running statistics do not fit."""
    whole = len(y) // network.tile * network.tile or len(y)  # no padding: it would be part of the statistics
    x, y = x[:whole], y[:whole].cpu()
    given = trials.correct(network.logits(x).cpu(), y)
    for part in training:
        part.training = True
    with torch.no_grad():
        tiles = torch.split(x.to(network.device, network.dtype), network.tile)
        logits = [network.call(tile).logits for tile in tiles]  # seeded: dropout draws here
    trial = trials.paired("the train mode it was given in", trials.correct(torch.cat(logits).cpu(), y), given, y, 1)
    if not trial.clear:
        return trial, ()
    advice = "BatchNorm's running statistics do not fit the weights: load them too, or keep them while training"
    return trial, [Finding("batch-norm", _evidence(Trial("in eval mode", trials.share(given)), trial, advice))]


def _outputs(logits: Logits, declared: str) -> Iterator[Finding]:
    """What is wrong with outputs that should be logits."""
    finite = logits.isfinite().all(1)
    if not finite.all():
        yield Finding("model-outputs", f"outputs of {int((~finite).sum())} of {len(logits)} images are NaN or infinite")
        return
    if declared == "probs" or not bool(((logits >= 0) & (logits <= 1)).all()):
        return
    advice = "return logits, or declare the probabilities (--outputs probs)"
    if bool(((logits == 0) | (logits == 1)).all()):
        found, advice = "exactly 0 or 1: hard decisions or a saturated softmax, with no gradient", "return logits"
    elif sum_to_one(logits):
        found = "in [0,1] and each row sums to 1: probabilities, which hide gradients"
    else:
        found, advice = "in [0,1]: scores after a sigmoid, it seems, which hide gradients", "return logits"
    yield Finding("model-outputs", f"all outputs on {len(logits)} images are {found}; {advice}")


def _notes(own: Sequence[MeanStd], declared: MeanStd | None, bench: Bench) -> Iterator[str]:
    if bool((bench.logits.double().logsumexp(1).abs() < 1e-3).all()):
        yield "the outputs are log-probabilities: logits shifted by a constant, which does no harm"
    if len(own) > 1 and not capabilities.members(bench.network.module):
        yield f"{len(own)} parts of the model hold a mean/std: it may normalise more than once"
    if own and declared is not None and own[0].apart(declared) > 1e-3:
        yield f"the card says {declared.numbers}, but the model holds {own[0].numbers}"
    low, high = float(bench.x.min()), float(bench.x.max())
    if low < 0 or high > 1:
        yield f"the images go from {low:g} to {high:g}; robustkit's are in [0,1]"
    if bench.n < GLANCE:
        yield f"{bench.n} images are too few to establish anything; give more (-n 256)"
    elif bench.one_class:
        yield f"all {len(bench.y)} images are of class {int(bench.y[0])}: give several"


def _evidence(given: Trial, better: Trial, advice: str, rivals: Sequence[Setting] = ()) -> str:
    also = f"; not told apart from it here: {', '.join(map(str, rivals[:3]))}" if rivals else ""
    return (
        f"clean accuracy {given.right} {given.setting}, but {better.right} with {better.setting} "
        f"({better.right.n} images, p = {better.p:.1g}{also}): {advice}"
    )


def _guessing(right: Proportion, classes: int) -> str:
    return (
        f"clean accuracy {right} on {right.n} images is not above guessing among {classes} classes, and no "
        "setting tried is better: are these the trained weights, and the data they were trained on?"
    )


def _accepted(network: Network, x: Images) -> Network:
    """The network in the type of images that it takes.

    Raises:
        UsageError: if it takes these in none, or returns no (n, classes) outputs.
    """
    network, raw = first_call(network, x[:1])
    check_form(raw, 1)  # values that are no logits, and labels that do not fit, are findings
    return network
