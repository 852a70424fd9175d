"""Native defenses and recipes. One defense, one file; this table is all that adding one needs besides."""

from robustkit.plugins import Entry, Plugin

PLUGIN = Plugin(
    defenses={
        "multires": Entry(
            "robustkit_defenses.multires:MultiRes", "random multi-resolution stack (arXiv:2408.05446), for its networks"
        ),
        "crossmax": Entry(
            "robustkit_defenses.crossmax:CrossMax",
            "joins an ensemble (arXiv:2408.05446); claimed 72/48 %, evaluated again 11/14 %",
        ),
        "contextual-fusion": Entry(
            "robustkit_defenses.contextual_fusion.settings:ContextualFusion",
            "foreground and background features, one head (arXiv:2011.09526): background=SPEC,head=FILE",
        ),
        "probes": Entry(
            "robustkit_defenses.probes:Probes", "probes on a network's layers as its members (arXiv:2408.05446)"
        ),
        "jpeg": Entry("robustkit_defenses.jpeg:Jpeg", "JPEG compression, BPDA inside", "robustkit-bench[data]"),
        "bit-depth": Entry("robustkit_defenses.bit_depth:BitDepth", "fewer levels a pixel, BPDA inside"),
        "median": Entry("robustkit_defenses.median:Median", "a median filter"),
        "gaussian-smoothing": Entry(
            "robustkit_defenses.gaussian_smoothing:GaussianSmoothing", "randomised smoothing (arXiv:1902.02918)"
        ),
        "random-resize-pad": Entry(
            "robustkit_defenses.random_resize_pad:RandomResizePad", "random size and place (arXiv:1711.01991)"
        ),
        "raw-isp": Entry(
            "robustkit_defenses.raw_isp:RawIsp", "to RAW and back (arXiv:2112.09219); claims not verified"
        ),
    },
    recipes={
        "dverge": Entry(
            "robustkit_defenses.recipes.dverge:Dverge", "members that are not fooled alike (arXiv:2009.14720)"
        ),
        "dverge-at": Entry(
            "robustkit_defenses.recipes.dverge:dverge_at", "dverge and adversarial training (arXiv:2009.14720)"
        ),
        "fusion": Entry("robustkit_defenses.recipes.fusion:Fusion", "the head of contextual-fusion (arXiv:2011.09526)"),
        "self-ensemble": Entry(
            "robustkit_defenses.recipes.self_ensemble:SelfEnsemble",
            "one network at many resolutions and its layers' probes, joined by crossmax (arXiv:2408.05446)",
        ),
        "standard": Entry("robustkit_defenses.recipes.standard:Standard", "cross-entropy, no defense"),
        "at": Entry("robustkit_defenses.recipes.at:AdversarialTraining", "PGD adversarial training (arXiv:1706.06083)"),
        "fast-at": Entry(
            "robustkit_defenses.recipes.fast_at:FastAdversarialTraining",
            "one-step adversarial training (arXiv:2001.03994)",
        ),
        "trades": Entry("robustkit_defenses.recipes.trades:Trades", "TRADES (arXiv:1901.08573)"),
        "distillation": Entry(
            "robustkit_defenses.recipes.distillation:Distillation",
            "defensive distillation (arXiv:1511.04508), which masks gradients; teacher=SPEC",
        ),
        "conadv": Entry(
            "robustkit_defenses.recipes.conadv:ConcurrentAdversarial",
            "adversarial images by stale weights (arXiv:2106.00221), a regulariser",
        ),
    },
)
