"""Fitting the head: logistic regression on frozen features, a convex problem solved to its optimum.

Akumalla, Haney, Bazhenov, arXiv:2011.09526: cross-entropy and α‖θ_fg‖², θ_fg the joint head's weights on foreground
features. Their optimiser and α are unknown to us; where a problem is convex, the optimiser does not matter.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from robustkit.api import Dataset, Labels
from robustkit.errors import UsageError
from robustkit_defenses.contextual_fusion.model import (
    BRANCHES,
    ContextFusion,
    Features,
    Head,
    device_of,
    headless,
    probe,
)

_MOST = 12_000  # weights of the joint head: Newton's method stores the square of that


@dataclass(frozen=True, slots=True)
class HeadPlan:
    """How to fit a head.

    Attributes:
        alpha: the penalty α‖θ‖² on the joint head's weights for (foreground, background) features; the paper's is the
            first alone.
        dropout: the share of (foreground, background) features that is dropped, the rest scaled up.
        decay: the same penalty on all weights of all three heads; above 0, so that there is one optimum.
        copies: of the data, each with masks of its own, over which dropout is averaged.
        steps: the most iterations of Newton's method.
        seed: of the masks; nothing else is random.
    """

    alpha: tuple[float, float] = (0.0, 0.0)
    dropout: tuple[float, float] = (0.0, 0.0)
    decay: float = 1e-4
    copies: int = 8
    steps: int = 100
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.alpha) != 2 or not all(0 <= a < float("inf") for a in self.alpha):
            raise UsageError(f"fusion: alpha is a penalty of at least 0 for each branch, not {self.alpha}")
        if len(self.dropout) != 2 or not all(0 <= share < 1 for share in self.dropout):
            raise UsageError(f"fusion: dropout is a share from 0 to below 1 for each branch, not {self.dropout}")
        if not 0 < self.decay < float("inf") or self.copies < 1 or self.steps < 1:
            raise UsageError("fusion: decay, copies and steps must be positive")


def fit_head(
    foreground: Tensor,
    background: Tensor,
    y: Tensor,
    classes: int,
    input_shape: tuple[int, ...] = (),
    plan: HeadPlan | None = None,
) -> Head:
    """A head, in eval mode, fitted on features of the same images; deterministic.

    `input_shape` is that of the images; the head does not know its branches again until `train_fusion` or the caller
    fills in its probes.

    Raises:
        UsageError: for features or labels that do not fit each other, too many weights, or no convergence.
    """
    plan = plan or HeadPlan()
    features = (foreground, background)
    for branch, z in zip(BRANCHES, features, strict=True):
        if z.dim() != 2 or len(z) != len(y) or not len(z) or not torch.isfinite(z).all():
            raise UsageError(f"fusion: {branch} features are finite, ({len(y)}, width), not {tuple(z.shape)}")
    if y.dtype != torch.int64 or int(y.min()) < 0 or int(y.max()) >= classes:
        raise UsageError(f"fusion: labels are int64 from 0 to {classes - 1}, not {int(y.min())} to {int(y.max())}")
    if missing := sorted(set(range(max(classes, 2))) - set(y.tolist())):
        raise UsageError(f"fusion: no image of class {missing[0]} to fit on; give some of each class")
    head = Head((foreground.shape[1], background.shape[1]), classes, input_shape, plan.dropout)
    if (weights := head.joint.weight.numel()) > _MOST:
        raise UsageError(
            f"fusion: a joint head of {weights} weights is too large to be solved for (at most {_MOST}); "
            "train it by the recipe: robustkit train fusion"
        )
    many, labels = _dropped(features, y, plan)
    penalty = [torch.full((z.shape[1],), plan.decay + a) for z, a in zip(features, plan.alpha, strict=True)]
    _solve(head.joint, torch.cat(many, 1), labels, torch.cat(penalty), plan.steps)
    for branch, z in zip(BRANCHES, features, strict=True):
        _solve(getattr(head, branch), z, y, torch.full((z.shape[1],), plan.decay), plan.steps)
    return head.eval()


def train_fusion(
    foreground: nn.Module,
    background: nn.Module,
    data: Dataset,
    plan: HeadPlan | None = None,
    *,
    indices: Sequence[int] | None = None,
    batch: int = 64,
) -> ContextFusion:
    """Two trained classifiers, fused: their features of the data are taken once, frozen, and a head is fitted on them.

    Take images that the classifiers were not trained on: on those the foreground is always right, and the background
    seems to add nothing.

    Raises:
        UsageError: if a classifier has no linear layer, does not take the images, or as `fit_head`.
    """
    places = list(range(len(data)) if indices is None else indices)
    if not places:
        raise UsageError("fusion: no images to fit a head on")
    shape = tuple(data.batch(places[:1])[0].shape[1:])
    fused = new_fusion(foreground, background, data.classes or 2, shape, plan)
    f, b, y = features_of(fused, data, places, batch)
    head = fit_head(f, b, y, data.classes or int(y.max()) + 1, shape, plan)
    return with_head(fused, head)


def features_of(
    fused: ContextFusion, data: Dataset, indices: Sequence[int], batch: int = 64
) -> tuple[Features, Features, Labels]:
    """Foreground features, background features and labels of images, on the CPU."""
    foreground, background, labels = [], [], []
    for start in range(0, len(indices), batch):
        x, y = data.batch(indices[start : start + batch])
        with torch.no_grad():
            foreground.append(fused.foreground(x.to(device_of(fused.foreground))).cpu())
            background.append(fused.background(x.to(device_of(fused.background))).cpu())
        labels.append(y)
    return torch.cat(foreground), torch.cat(background), torch.cat(labels)


def with_head(fused: ContextFusion, head: Head) -> ContextFusion:
    """The same two networks behind another head, which was fitted on their features and now knows them again."""
    head.probe_foreground.copy_(fused.head.probe_foreground)
    head.probe_background.copy_(fused.head.probe_background)
    return ContextFusion(fused.foreground, fused.background, head)


def new_fusion(
    foreground: nn.Module, background: nn.Module, classes: int, image: tuple[int, ...], plan: HeadPlan | None = None
) -> ContextFusion:
    """Two trained classifiers, fused by heads of zeros for images of (channels, height, width).

    Raises:
        UsageError: if a classifier has no linear layer, or does not take such images.
    """
    extractors = (headless(foreground, "foreground"), headless(background, "background"))
    probes = [probe(extractor, image, branch) for extractor, branch in zip(extractors, BRANCHES, strict=True)]
    head = Head((probes[0].shape[1], probes[1].shape[1]), classes, image, (plan or HeadPlan()).dropout)
    head.probe_foreground.copy_(probes[0])
    head.probe_background.copy_(probes[1])
    return ContextFusion(*extractors, head)


def _dropped(features: Sequence[Features], y: Labels, plan: HeadPlan) -> tuple[list[Tensor], Tensor]:
    """The features as they are; or with dropout, copies of them under masks that are drawn once."""
    if not any(plan.dropout):
        return list(features), y
    generator = torch.Generator().manual_seed(plan.seed)
    found = []
    for z, share in zip(features, plan.dropout, strict=True):
        many = z.repeat(plan.copies, 1)
        kept = torch.rand(many.shape, generator=generator) >= share
        found.append(many * kept / (1 - share))
    return found, y.repeat(plan.copies)


def _solve(layer: nn.Linear, z: Features, y: Labels, penalty: Tensor, steps: int) -> None:
    """Fill a layer with the optimum of mean cross-entropy + Σ penalty·weight² (none on the bias).

    scikit-learn's penalty is ½Σv² for all weights alike: v = weight·√penalty makes ours of it, a column at a time. Of
    two classes it fits the difference of their weights, whose penalty is half of theirs.
    """
    try:
        from sklearn.linear_model import LogisticRegression  # slow to import
    except ModuleNotFoundError as error:
        raise UsageError(
            "fitting a fusion's head to its optimum needs scikit-learn, which is not installed: pip install "
            "scikit-learn (the recipe fusion trains without)"
        ) from error
    root, two = penalty.double().sqrt(), layer.out_features == 2
    solver = LogisticRegression(C=(2 if two else 1) / (2 * len(y)), solver="newton-cholesky", tol=1e-6, max_iter=steps)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged is said below, and one class too few above
        solver.fit((z.detach().double() / root).numpy(), y.numpy())
    if int(solver.n_iter_.max()) >= steps:
        raise UsageError(f"fusion: the head has not converged in {steps} steps; give more steps or a larger decay")
    weight, bias = torch.from_numpy(solver.coef_) / root, torch.from_numpy(solver.intercept_)
    with torch.no_grad():
        layer.weight.copy_(torch.cat([-weight, weight]) / 2 if two else weight)
        layer.bias.copy_(torch.cat([-bias, bias]) / 2 if two else bias)
