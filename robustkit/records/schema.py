"""The facts that are stored, each written once: its name, its type, what it means. Needs no torch.

Figures are computed from facts and are no part of this. A fact that is added is optional to all who read, for records
of older versions lack it; one that changes its meaning takes a new schema.
"""

from collections.abc import Mapping
from typing import Literal, NamedTuple

import numpy as np

# What the `schema` of a file says it is.
RUN = "robustkit/run/1"
SWEEP = "robustkit/sweep/1"
TRANSFER = "robustkit/transfer/1"
CORRUPTIONS = "robustkit/corruptions/1"
CERTIFIED = "robustkit/certified/1"
STUDY = "robustkit/study/1"
BOUNDS = "robustkit/bounds/1"
BASELINE = "robustkit/baseline/1"
AUDIT = "robustkit/audit/1"
AUDITED = "robustkit/audited/1"  # an audit by itself, with what was audited
COMPARISON = "robustkit/comparison/1"
SWEEP_COMPARISON = "robustkit/sweep-comparison/1"
GATE = "robustkit/gate/1"

# How a sample ended: wrong unattacked, broken by an attack, broken by none, or by none though one broke the rules.
STATUSES = WRONG, BROKEN, ROBUST, UNKNOWN = "WRONG", "BROKEN", "ROBUST", "UNKNOWN"
# What one attack did to one sample. The judge and the journal write the code, which is the place of the word here.
OUTCOMES = SURVIVED, BROKE, VIOLATED = "survived", "broken", "violated"
SURVIVED_CODE, BROKE_CODE, VIOLATED_CODE = range(len(OUTCOMES))

Columns = Mapping[str, np.ndarray]
Where = Literal["always", "quantize", "draws", "rejects", "certify"]
INT, FLOAT, BOOL, TEXT = np.int64, np.float64, np.bool_, np.str_


class Column(NamedTuple):
    """A fact of each row of a table, or of a part of the journal.

    `where` says of which runs: of all, of those asked to quantize or to certify, of those of a randomised model, or of
    one that may refuse to decide.
    """

    name: str
    dtype: type[np.generic]
    meaning: str
    where: Where = "always"


def _some(columns: tuple[Column, ...], *wanted: str) -> tuple[Column, ...]:
    return tuple(column for column in columns if column.name in wanted)


# `samples.parquet`: one row a sample, in the order of the job's indices.
SAMPLES = (
    Column("index", INT, "its place in the dataset"),
    Column("label", INT, "its class"),
    Column("status", TEXT, "one of STATUSES"),
    Column("broken_by", TEXT, "the attack that broke it, empty if none did"),
    Column("distance", FLOAT, "of the image that broke it, in the run's norm; NaN if none did"),
    Column("sha256", TEXT, "of the image's float32 bytes"),
    Column("prediction", INT, "the class that the model decides unattacked"),
    Column("margin", FLOAT, "of the unattacked image; below zero where it is misclassified"),
    Column("target", INT, "the class that an attack has to reach, −1 in an untargeted run"),
    Column("broken_at", FLOAT, "the eps of the run that broke it, in a sweep maybe a smaller one; NaN if none did"),
    Column("quantized_status", TEXT, "its status if each adversarial is first rounded", "quantize"),
    Column("draws", TEXT, "a pattern of the unattacked image's fresh draws, see `records.votes`", "draws"),
    Column("expected", FLOAT, "of a mixture with known weights: the chance that the clean image is right", "draws"),
    Column("refused", BOOL, "whether the model refuses the unattacked image", "rejects"),
    Column("certified", BOOL, "whether no image of ball and box is misclassified, by proof", "certify"),
    Column("rung", TEXT, "the bound that proved it, or the last one that was tried; empty if none was", "certify"),
    Column("bound", FLOAT, "of the smallest margin in the ball, from below; NaN without a rung", "certify"),
    Column("needed", FLOAT, "what `bound` must be above to count as proved, for rounding", "certify"),
    Column("bound_passes", FLOAT, "what the bounds cost, in passes of the network", "certify"),
    Column("checked", BOOL, "whether it was attacked all the same after it was proved", "certify"),
)
# `attacks.parquet`: one row a (sample, attack) that met.
ATTACKS = (
    Column("index", INT, "the sample's place in the dataset"),
    Column("attack", TEXT, "the attack's name in the job"),
    Column("outcome", TEXT, "one of OUTCOMES"),
    Column("distance", FLOAT, "of the candidate that the judge kept, in the run's norm; NaN if there is none"),
    Column("margin", FLOAT, "of that candidate; NaN if there is none"),
    Column("forwards", INT, "passes that the attack spent on the sample"),
    Column("backwards", INT, "gradients that the attack spent on the sample"),
    Column("prediction", INT, "the class that the model decides on the candidate kept, −1 if there is none"),
    Column(
        "flat",
        FLOAT,
        "share of its gradients of the model itself, while the sample stood, that were zero or not "
        "finite; 1 if none flows, NaN if it asked for none",
    ),
    Column("first_loss", FLOAT, "what it climbed, where it began; NaN if it has no one loss a sample"),
    Column("last_loss", FLOAT, "the same, where it ended"),
    Column("log", TEXT, "what the attack says of what it tried on the sample, empty if it says nothing"),
    Column("quantized", TEXT, "the outcome after rounding, one of OUTCOMES", "quantize"),
    Column("draws", TEXT, "a pattern of the candidate's fresh draws, empty if there is none", "draws"),
    Column("ever", BOOL, "whether any pass over a valid candidate misclassified it", "draws"),
    Column("expected", FLOAT, "of a mixture with known weights: the chance that its candidate is right", "draws"),
)
# What a baseline keeps of a sample, and then of each attack that it met.
BASELINE_SAMPLES = _some(SAMPLES, "index", "label", "status", "broken_by", "sha256")
BASELINE_COSTS = _some(ATTACKS, "forwards", "backwards")

# A part of the journal: the clean pass over one shard, one row a sample …
CLEAN_FACTS = (
    Column("correct", BOOL, "whether the model, or the vote of its draws, is right"),
    *_some(SAMPLES, "prediction", "margin", "target", "draws", "expected", "refused"),
)
# … the certificates of one shard, one row a sample, and `seconds`, one number …
CERTIFICATE_FACTS = _some(SAMPLES, "certified", "rung", "bound", "needed", "bound_passes")
# … or one attack on one shard, one row a sample that it met; beside these `seconds`, one number a batch, and the
# images kept, `adv`, with the `adv_position` of each.
ATTACK_FACTS = (
    Column("position", INT, "the sample's place in the shard"),
    Column("outcome", INT, "the code of one of OUTCOMES"),
    *_some(ATTACKS, "distance", "margin"),
    Column("decision", INT, "what the column `prediction` will hold"),
    *_some(ATTACKS, "forwards", "backwards", "flat", "first_loss", "last_loss", "log"),
    Column("quantized", INT, "the code of the outcome after rounding; as survived if that was not asked"),
    Column("reason", TEXT, "which rules the attack broke, a line each; empty of a sample that is broken all the same"),
    *_some(ATTACKS, "draws", "ever", "expected"),
)
