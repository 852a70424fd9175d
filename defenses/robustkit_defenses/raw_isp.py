"""A camera's RAW as a filter: an image is taken back to RAW and developed again. arXiv:2112.09219.

"All You Need is RAW: Defending Against Adversarial Attacks with Camera Image Pipelines", Zhang, Dong, Heide, ECCV 2022.
A network F maps RGB to packed Bayer RAW; G, a learned image pipeline, and S, a conventional one, develop it; the
classifier sees ω·G(F(x)) + (1−ω)·S(F(x)).

Claimed there, of robustness: *not verified*. We did not reach the paper's tables, and ω = 0.7 and the steps of S are
from memory. The released code has neither S nor ω (`preset=released`), and attacks the bare classifier only, so it says
nothing of an attacker who knows of the defense. Every step here is differentiable: attack through it. What we measured,
with our weights, on 200 CIFAR-10 images and ResNet-20 in Linf 2/255 (reports/paper/raw/README.md): 64 % against APGD on
the bare network, which has 0.5 % there; 9.5 % against short APGD through all of it; clean 67 %, of 91 % without it.

F and G are ours, trained on RAW that was made from photographs (cards in robustkit_defenses/raw/*.json), and G is not
PyNET. Train your own: python -m robustkit_defenses.raw.train --help, then weights=FOLDER.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import nn

from robustkit.api import Images
from robustkit.errors import UsageError
from robustkit.models.wrapping import Prepared
from robustkit_defenses.raw import weights
from robustkit_defenses.raw.bayer import Demosaic
from robustkit_defenses.raw.camera import Camera

_OMEGA = {"paper": 0.7, "released": 1.0}


@dataclass(frozen=True, slots=True)
class RawIsp:
    """Images of 3 channels, of any size from 2×2, taken to RAW and developed again before the network sees them.

    `omega` is G's share, from 0 to 1; none is the preset's: 0.7 of `paper`, 1 of `released`, which has no S. `learned`
    is F: `plain5`, the released code's shape, or `unet`, ten times cheaper and by us trained longer. `demosaic` is how
    S fills in colours.
    `weights` is a folder of one's own F and G; empty is the bundled ones.
    """

    preset: Literal["paper", "released"] = "paper"
    omega: float | None = None
    learned: Literal["plain5", "unet"] = "unet"
    demosaic: Demosaic = "malvar"
    weights: str = ""

    def __post_init__(self) -> None:
        for name, value, known in (
            ("preset", self.preset, tuple(_OMEGA)),
            ("learned", self.learned, ("plain5", "unet")),
            ("demosaic", self.demosaic, ("bilinear", "malvar")),
        ):
            if value not in known:
                raise UsageError(f"raw-isp: {name} must be one of {', '.join(known)}, not {value!r}")
        if not 0 <= self.share <= 1:
            raise UsageError(f"raw-isp: omega is from 0 to 1, not {self.share:g}")
        if self.preset == "released" and self.share != 1:
            raise UsageError("raw-isp: the released code has no S, so its omega is 1; leave omega out, or preset")

    @property
    def share(self) -> float:
        """ω, the share of G's image."""
        return _OMEGA[self.preset] if self.omega is None else self.omega

    def protect(self, model: nn.Module) -> nn.Module:
        """The network behind the two pipelines, on its device; gradients flow through both.

        Raises:
            UsageError: if the weights are not there, or not those of their cards.
        """
        home = next((p for p in model.parameters() if p.is_floating_point()), None)
        step = Redeveloped(self)
        return Behind(step if home is None else step.to(home.device, home.dtype), model).eval()


class Redeveloped(nn.Module):
    """Images to RAW and back: (batch, 3, height, width) in [0,1] to the same."""

    def __init__(self, settings: RawIsp) -> None:
        super().__init__()
        folder = Path(settings.weights).expanduser() if settings.weights else weights.FOLDER
        self.settings = settings
        self.camera = Camera()
        self.to_raw = weights.load(settings.learned, folder)
        self.learned = weights.load("isp", folder) if settings.share > 0 else None

    def forward(self, x: Images) -> Images:
        """ω·G(F(x)) + (1−ω)·S(F(x)).

        Raises:
            UsageError: for other than 3 channels, or less than 2×2 pixels.
        """
        if x.shape[1] != 3 or min(x.shape[2:]) < 2:
            given = "×".join(map(str, x.shape[1:]))
            raise UsageError(f"raw-isp needs images of 3 channels and at least 2×2 pixels, not {given}")
        raw, omega = self.to_raw(x), self.settings.share
        if self.learned is None:
            return self.camera.developed(raw, self.settings.demosaic)
        learned: Images = self.learned(raw)
        if omega == 1:
            return learned
        return omega * learned + (1 - omega) * self.camera.developed(raw, self.settings.demosaic)


class Behind(Prepared):
    """A network behind the pipelines, with the bare network as a stand-in (the identity for the pipelines)."""

    def surrogates(self) -> dict[str, nn.Module]:
        """The bare network as `identity`, and what the network declares, behind the pipelines."""
        return {"identity": self.network, **super().surrogates()}
