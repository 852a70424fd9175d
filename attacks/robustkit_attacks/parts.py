"""What several attacks need: when to ask the judge, who leaves, and which classes to aim at."""

from typing import Any, NamedTuple, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from robustkit.api import Case, Images
from robustkit.numerics import rows

State = TypeVar("State", bound=NamedTuple)
Left = Float[Tensor, "left channels height width"]  # images of the samples that are left of a batch


def checkpoint(step: int) -> bool:
    """Whether to ask the judge after this step (from 1): early and then every tenth, since asking costs a forward.

    Rows leave a batch at these steps only, and after the last step of a run, on every device: between them nothing is
    asked of it.
    """
    return step in (1, 2, 4, 7) or step % 10 == 0


def confirmed(case: Case, adv: Images, hit: Tensor) -> Tensor:
    """Submit the rows of `adv` where `hit`; true where the judge confirms a break. Asks the device once."""
    at = rows.positions(hit)
    broken = torch.zeros_like(hit)
    if len(at):
        broken[at] = case.select(at).submit(adv[at])
    return broken


def leave(case: Case, state: Any) -> tuple[Case, Any, Tensor]:
    """Submit what `state.found` holds anew (`state.hit`); the case and state that stay, and which rows that is.

    Asks the device twice: which rows to submit, and which stay.
    """
    stays = rows.positions(~confirmed(case, state.found, state.hit))
    state = state._replace(hit=torch.zeros_like(state.hit))
    return case.select(stays), select(state, stays), stays


def select(state: Any, chosen: Tensor) -> Any:
    """The rows of a NamedTuple of tensors at some indices."""
    return type(state)(*(value[chosen] for value in state))


def wrong_classes(case: Case, most: int) -> Int[Tensor, "batch classes"]:
    """The classes to aim at, nearest first: shape (batch, k), the highest logits at the clean point other than y.

    In a targeted evaluation it is the target alone.
    """
    if case.target is not None:
        return case.target[:, None]
    logits = case.oracle.outputs(case.x).logits
    ranked = logits.scatter(1, case.y[:, None], -torch.inf).argsort(dim=1, descending=True, stable=True)
    return ranked[:, : min(most, logits.shape[1] - 1)]
