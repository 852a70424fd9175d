"""The shapes that functions say they take and give are checked while the tests run, in each of the three packages."""

import jaxtyping
import pytest
import torch
from robustkit_attacks.transfer import gradients
from robustkit_defenses import multires

from robustkit.api import ThreatModel
from tests import shapes


@pytest.mark.parametrize(
    "call",
    [
        lambda x: ThreatModel("linf", 0.1).project(x, x[:1]),
        lambda x: gradients.levelled(x[0]),
        lambda x: multires._gray(x[0]),
    ],
    ids=shapes.PACKAGES,
)
def test_a_wrong_shape_is_found(call):
    with pytest.raises(jaxtyping.TypeCheckError, match="batch channels height width"):
        call(torch.zeros(2, 3, 4, 4))
