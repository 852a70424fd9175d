"""Contract test: is the model one function of one image?

Its answer to an image must not depend on how it is asked: twice, in another order, alone, among others, in batches of
any size from 1, after other queries, with gradients recorded or not, from a fresh copy, or with the image a float
beside the 8-bit grid. What is measured in the judge's tiles is else not what is deployed, or not what is attacked.

Cost: about 8 + 8·15 rows, and the sizes of SIZES (about 0.8 k at a tile of 128); no gradient. An equality needs one
image; 8 are taken. Of a randomised model, whose noise belongs to a row, only what has the same noise is compared.
Rule: a difference of more than `contract` median margins is invalid; beside the grid, of more than `grid` beyond what
as large a step makes elsewhere, it is suspect.
"""

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from robustkit.api import Images, Logits
from robustkit.audit import rules
from robustkit.audit.probes.asking import Look, held, scale_of
from robustkit.audit.rules import Limits
from robustkit.errors import first_line
from robustkit.models.oracle import Network
from robustkit.numerics import devices
from robustkit.numerics.streams import SampleDraws, key_of
from robustkit.records.findings import Check

NAME, GRID = "one-function", "8-bit-grid"
IMAGES, SMALL = 8, 16  # every size up to SMALL is tried
_STEPS = (1e-5, 0.1 / 255, 0.2 / 255)  # off the grid, and as far again
_OFF = 4.0  # times as much as the second step changes, the first may


class Contract(NamedTuple):
    """The largest difference of outputs, in median margins: for each way to ask, beside the grid; what was left out."""

    ways: dict[str, float]
    grid: float
    left_out: tuple[str, ...] = ()


def measure(look: Look) -> Contract:
    """Every way to ask against the judge's."""
    look = look.first(IMAGES)
    network, x = look.network, look.x
    reference = devices.wide(held(network).logits(x))
    unit = scale_of(reference)

    def far(found: Logits, wanted: Logits = reference) -> float:
        return float(((found - wanted).abs().amax() / unit).nan_to_num(torch.inf).clamp_max(1e6))

    fresh, why = _copy(network)
    ways = {"twice": far(devices.wide(held(network).logits(x))), "with gradients recorded": far(_recorded(network, x))}
    left_out = [why] if why else []
    if fresh is not None:
        ways["of a fresh copy"] = far(devices.wide(held(fresh).logits(x)))
        try:
            with torch.inference_mode():  # of the copy: what a model keeps from such a call is of no use in another
                ways["in inference mode"] = far(devices.wide(held(fresh).logits(x)))
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # it takes derivatives inside
            left_out.append("it does not run in inference mode")
    if network.noise is None:
        if network.tile > 1:
            some, refused = _batches(network, x, reference, far)
            ways |= some
            left_out += refused
        fresh, _ = _copy(network)  # another, for the first may keep something that was made in inference mode
        if fresh is not None:
            ways["after other queries"] = _after_queries(look, fresh, far)
    return Contract(ways, _beside_grid(network, x, unit), tuple(left_out))


def _copy(network: Network) -> tuple[Network | None, str]:
    """A copy of the model as it is now; why there is none."""
    try:
        return replace(network, module=copy.deepcopy(network.module)), ""
    except Exception as error:  # whatever a foreign module holds that cannot be copied
        return None, f"it cannot be copied ({first_line(error, 80)})"


def _ask(network: Network, x: Images) -> Logits:
    """A batch as it is, without tiles."""
    with torch.no_grad():
        return devices.wide(network.call(x.to(network.device, network.dtype).clone()).logits)


def _recorded(network: Network, x: Images) -> Logits:
    """What a pass says that records gradients."""
    return devices.wide(torch.cat([tile.outputs.logits.detach() for tile in held(network).tracked(x)])[: len(x)])


def _batches(
    network: Network, x: Images, reference: Logits, far: Callable[..., float]
) -> tuple[dict[str, float], list[str]]:
    """Order, neighbours and the size of the batch."""
    n, wide = len(x), network.tile
    draws = SampleDraws(key_of("robustkit contract neighbours"), torch.arange(n, device=x.device))
    others = draws.uniform(x.shape[1:]).to(x)
    turned = torch.arange(n - 1, -1, -1, device=x.device)
    ways = {
        "in another order": far(devices.wide(held(network).logits(x[turned]))[turned]),
        "among other images": max(
            far(devices.wide(held(network).logits(torch.cat([x[:1], others])))[:1], reference[:1]),
            far(devices.wide(held(network).logits(torch.cat([others, x[:1]])))[-1:], reference[:1]),
        ),
    }
    worst, refused = 0.0, []
    for size in (*range(1, SMALL + 1), 33, wide - 1, wide, wide + 1, 2 * wide):
        turns = torch.arange(size, device=x.device) % n
        try:
            found = _ask(network, x[turns])
        except torch.OutOfMemoryError:
            raise
        except Exception:  # a model may take batches of one size only, and says so in words of its own
            refused.append(size)
            continue
        if len(found) == size:
            worst = max(worst, far(found, reference[turns]))
    ways["in batches of other sizes"] = worst
    return ways, [f"it takes no batches of {', '.join(map(str, refused))}"] if refused else []


def _after_queries(look: Look, fresh: Network, far: Callable[..., float]) -> float:
    """Images that neither has seen, then neighbours of them, of which the copy has seen neither."""
    draws = SampleDraws(key_of(look.seed, "robustkit contract queries"), look.indices)
    new = 0.5 * (look.x + draws.uniform(look.x.shape[1:]).to(look.x))
    near = (new + 4 / 255 * (draws.uniform(new.shape[1:], step=1) - 0.5).sign().to(new)).clamp(0, 1)
    look.network.logits(new)
    return far(devices.wide(look.network.logits(near)), devices.wide(fresh.logits(near)))


def _beside_grid(network: Network, x: Images, unit: Tensor) -> float:
    """By how much more the outputs change off the 8-bit grid than over another step as long."""
    grid = (x.clamp(1 / 255, 254 / 255) * 255).round() / 255
    on = devices.wide(held(network).logits(grid))
    worst = 0.0
    for step in _STEPS:
        off, further = (devices.wide(held(network).logits(grid + k * step)) for k in (1, 2))
        beyond = (off - on).abs().amax(1) - _OFF * (further - off).abs().amax(1)
        worst = max(worst, float((beyond.amax() / unit).nan_to_num(torch.inf)))
    return min(worst, 1e6)


def judge(seen: Contract, limits: Limits) -> list[Check]:
    """The checks."""
    worst = max(seen.ways.values())
    text = f"asked otherwise ({', '.join(seen.ways)}) its answers differ by up to {worst:.1g} of the median margin"
    if seen.left_out:
        text += f"; {'; '.join(seen.left_out)}"
    broken = [name for name, value in seen.ways.items() if value > limits.contract]
    if broken:
        text += f": not one function of one image, for it answers otherwise when asked {', '.join(broken)}"
    one = Check(NAME, "invalid" if broken else "fine", text, worst, limits.contract)
    words = f"a float beside the 8-bit grid the outputs change by {max(seen.grid, 0):.1g} of the median margin at once"
    return [one, rules.judged(GRID, seen.grid > limits.grid, words, "attacks, which leave the grid, meet another model",
                              max(seen.grid, 0.0), limits.grid)]  # fmt: skip
