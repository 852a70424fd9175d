"""Neighbours in feature space as the decision. Papernot, McDaniel 2018, "Deep k-nearest neighbors", arXiv:1803.04765.

The re-creation of google-research/selfstudy-adversarial-robustness (SimCLR and 8 neighbours) is broken on 62 %; the
attack that fits is by guide images (Sitawarin, Wagner 2019, arXiv:1903.08333). One layer here, the last features, and
no rejection: the vote is the label.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from robustkit.api import Dataset, Images, Logits
from robustkit.errors import UsageError
from robustkit_defenses.fallen import fitted as files
from robustkit_defenses.fallen.dress import Dress, dressed
from robustkit_defenses.fallen.surgery import trunk_and_head


@dataclass(frozen=True, slots=True)
class DkNN:
    """The logarithm of votes of the `neighbours` nearest training images (`fitted`, see `fit`) in the last features.

    Features have length 1. A vote weighs exp(−distance² / temperature): at 0.001 nearly all is the nearest one's, and
    so is the gradient. `temperature` 0 counts votes.
    """

    fitted: str = ""
    neighbours: int = 15
    temperature: float = 0.001
    dress: Dress = "declared"

    def __post_init__(self) -> None:
        if self.neighbours < 1 or self.temperature < 0:
            raise UsageError("dknn: neighbours is at least 1, temperature at least 0")

    def protect(self, model: nn.Module) -> nn.Module:
        """The network's trunk and the vote; a soft vote of all images stands in, and the network's own head."""
        trunk, _ = trunk_and_head(model)
        known = files.load(self.fitted, "dknn")
        device = files.device_of(model)

        def voting(neighbours: int, temperature: float) -> nn.Module:
            return _Votes(trunk, known, neighbours, temperature).to(device)

        stand_ins = {"soft": voting(len(known["y"]), 0.1), "head": model}
        return dressed(voting(self.neighbours, self.temperature), self.dress, stand_ins)


class _Votes(nn.Module):
    def __init__(self, trunk: nn.Module, known: dict[str, Tensor], neighbours: int, temperature: float) -> None:
        super().__init__()
        self.trunk = trunk
        self.neighbours = min(neighbours, len(known["y"]))
        self.temperature = temperature
        self.register_buffer("features", known["features"], persistent=False)
        self.register_buffer("y", known["y"], persistent=False)
        self.classes = int(known["classes"])

    def forward(self, x: Images) -> Logits:
        """The logarithm of each class's votes; with temperature 0 their number."""
        return votes(
            F.normalize(self.trunk(x).flatten(1)), self.get_buffer("features"), self.get_buffer("y"), self.classes,
            self.neighbours, self.temperature,
        )  # fmt: skip


def votes(z: Tensor, features: Tensor, y: Tensor, classes: int, neighbours: int, temperature: float) -> Logits:
    """The votes of the nearest of `features` for rows of `z`."""
    near = (2 - 2 * z @ features.T).topk(neighbours, dim=1, largest=False)
    labels = F.one_hot(y[near.indices], classes).bool()
    if not temperature:
        return labels.sum(1).to(z)
    logs = (-near.values / temperature).unsqueeze(2).expand(labels.shape).masked_fill(~labels, -torch.inf)
    floor = z.new_full((len(z), 1, classes), -60.0) - near.values[:, :1, None].detach() / temperature
    return torch.cat([logs, floor], 1).logsumexp(1)


def fit(network: nn.Module, data: Dataset, images: int = 1000) -> dict[str, Tensor]:
    """The training images' last features, of length 1, and their labels."""
    trunk, head = trunk_and_head(network)
    x, y = files.images_of(data, images)
    device = files.device_of(network)
    with torch.no_grad():
        features = F.normalize(trunk(x.to(device)).flatten(1))
    return {"features": features, "y": y.to(device), "classes": torch.tensor(head.out_features)}
