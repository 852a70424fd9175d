"""Transfer runs: adversarials made once on surrogates, judged on every victim. `transfer` is the way in."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from robustkit import datasets, events
from robustkit.api import Attack, Dataset, Defense
from robustkit.datasets.choice import choose_samples
from robustkit.engine.plan import parse_target
from robustkit.engine.request import Execution, check_counts, threat_of
from robustkit.models import defended
from robustkit.models.turns import one_at_a_time
from robustkit.records.transfer import TransferRecord
from robustkit.transfers import plan
from robustkit.transfers.measure import SHARD, Out, measure


@one_at_a_time()
def transfer(
    surrogates: plan.Models, victims: plan.Models,
    attacks: str | Attack | Sequence[str | Attack] | Mapping[str, str | Attack],
    data: str | Dataset | tuple[Any, Any],
    *,
    sets: Mapping[str, Sequence[str]] | None = None, defense: str | Defense | Sequence[str | Defense] = (),
    outputs: Literal["logits", "probs"] | Mapping[str, Literal["logits", "probs"]] = "logits", draws: int = 1,
    norm: Literal["linf", "l2", "l1", "l0"] = "linf", eps: float | str | None = None, seed: int = 0,
    target: int | str | None = None, n: int | None = None, indices: str | Sequence[int] | None = None,
    trust: bool = False, device: str = "auto", batch_size: int | Literal["auto"] = "auto", shard_size: int = SHARD,
    tile: int | None = None, out: Out = None, fresh: bool = False,
    on_event: Callable[[events.TransferEvent], None] | None = None, label: str = "",
) -> TransferRecord:  # fmt: skip
    """Measure how adversarials that are made on surrogates transfer to victims.

    Each attack makes the adversarials of all samples once for each surrogate set, without asking a victim. They are
    checked by the judge's rule, then shown to every victim, and to the surrogates themselves.

    Args:
        surrogates: specs, nn.Modules or callables from [0,1] images to logits; one, several, or a mapping from names.
        victims: as `surrogates`; any model, also one without gradients or a randomised one.
        attacks: specs (`+` makes a list) or Attacks that spend the whole eps, white-box and transfer attacks alike;
            one, several, or a mapping from labels.
        data: a spec, a Dataset, or a pair (x, y) of tensors or arrays, x (n, channels, height, width) in [0,1].
        sets: names of surrogate sets, each with the names of its surrogates; None is one set of all.
        defense: what stands before every victim, as for `evaluate`; surrogates stay bare.
        outputs: what the models return, of all or by their names; probabilities must be declared.
        draws: of a randomised model, how many fresh draws vote on an image: it decides on their most frequent class.
        norm: of the threat model.
        eps: its radius in [0,1] units, 8/255 or "8/255"; None as for `evaluate`.
        seed: of all random numbers.
        target: None, a class, "least-likely" (of the surrogates) or "random"; success is then the target alone.
        n: the first n samples.
        indices: these samples, instead of n.
        trust: unpickle checkpoints that are more than weights, and call what a card names: both run code from them.
        device: "auto" is that of the modules given; CUDA, MPS or XPU if there is one and all models are specs.
        batch_size: the most samples in flight; "auto" finds what fits. It changes no result.
        shard_size: samples of one journal file, rounded up to whole tiles. It changes no result.
        tile: width of the batches the models see; None chooses by image size.
        out: a folder that is continued if it is of these images and this threat model, or a function from what
            identifies them to a folder; what it holds of adversarials and answers is not computed again.
        fresh: forget what `out` holds.
        on_event: told of progress, see `robustkit.events`.
        label: what the run is called in its record and reports; it decides nothing.

    Raises:
        UsageError: for anything that cannot be run as given, before any adversarial is made.
    """
    threat = threat_of(norm, eps)
    check_counts(tile=tile, draws=draws)
    execution = Execution(batch_size, shard_size, fresh=fresh, label=label)
    tell = on_event or (lambda event: None)
    sources, named_victims = plan.name_models(surrogates, "surrogate"), plan.name_models(victims, "victim")
    defenses = defended.resolve(defense)
    models = plan.check_same(sources, named_victims, defenses)
    returned = plan.parse_outputs(outputs, models)
    groups, named = plan.parse_sets(sets, sources), plan.parse_attacks(attacks, threat)
    plan.check_models(models, data, norm)
    dataset = datasets.resolve(data)
    request = plan.Request(
        tuple(named_victims), groups, named, threat, data if isinstance(data, str) else dataset.name,
        eps if isinstance(eps, str) else "", parse_target(target, dataset.classes or None), seed, defenses, draws,
    )  # fmt: skip
    samples = choose_samples(dataset, n, indices, request.target)
    loaded = plan.load_all(models, dataset.name, norm, outputs=returned, trust=trust, device=device)
    with plan.open_all(loaded, samples, request, tile=tile) as (opened, ready):
        record = measure(opened, ready, samples, request, execution, out, tell)
    tell(events.Finished(record.folder))
    return record
