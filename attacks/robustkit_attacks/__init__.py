"""Native attacks. One attack, one file; this table is all that adding one needs besides."""

from robustkit.plugins import Entry, Plugin

PLUGIN = Plugin(
    attacks={
        "fgsm": Entry("robustkit_attacks.fgsm:FGSM", "one signed-gradient step (arXiv:1412.6572)"),
        "pgd": Entry("robustkit_attacks.pgd:PGD", "projected gradient descent with restarts (arXiv:1706.06083)"),
        "cw": Entry(
            "robustkit_attacks.cw:CW",
            "Carlini–Wagner, nearest in L2; margin form in Linf (arXiv:1608.04644)",
        ),
        "apgd": Entry("robustkit_attacks.apgd:APGD", "Auto-PGD: no step size to tune (arXiv:2003.01690)"),
        "fab": Entry("robustkit_attacks.fab:FAB", "Fast Adaptive Boundary, nearest adversarial (arXiv:1907.02044)"),
        "square": Entry("robustkit_attacks.square:Square", "random search, scores only (arXiv:1912.00049)"),
        "autoattack": Entry(
            "robustkit_attacks.autoattack:AutoAttack", "APGD-CE, APGD-T, FAB-T, Square (arXiv:2003.01690)"
        ),
    },
)
