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
        "sap": Entry("robustkit_defenses.fallen.sap:SAP", "fell: pruned activations (arXiv:1803.01442)"),
        "k-wta": Entry("robustkit_defenses.fallen.k_wta:KWinners", "fell: winners take all (arXiv:1905.10510)"),
        "jump": Entry("robustkit_defenses.fallen.jump:Jump", "fell: activations that jump"),
        "thermometer": Entry("robustkit_defenses.fallen.thermometer:Thermometer", "fell: thermometer code (ICLR 2018)"),
        "anti-adversary": Entry(
            "robustkit_defenses.fallen.anti_adversary:AntiAdversary",
            "fell: a step towards its own decision (arXiv:2103.14347)",
        ),
        "hedge": Entry(
            "robustkit_defenses.fallen.hedge:Hedge", "fell: a step away from all classes (arXiv:2106.04938)"
        ),
        "mean-sparse": Entry(
            "robustkit_defenses.fallen.mean_sparse:MeanSparse",
            "fell: dead zones around means (arXiv:2406.05927); fitted=FILE",
        ),
        "odds": Entry(
            "robustkit_defenses.fallen.odds:Odds", "fell: noise tells adversarials (arXiv:1902.04818); fitted=FILE"
        ),
        "tv-minimisation": Entry(
            "robustkit_defenses.fallen.tv_minimisation:TVMinimisation", "fell: least variation (arXiv:1711.00117)"
        ),
        "quilting": Entry(
            "robustkit_defenses.fallen.quilting:Quilting", "fell: tiles of clean images (arXiv:1711.00117); fitted=FILE"
        ),
        "me-net": Entry(
            "robustkit_defenses.fallen.me_net:MENet", "fell: masks and matrix estimation (arXiv:1905.11971)"
        ),
        "mixup-inference": Entry(
            "robustkit_defenses.fallen.mixup_inference:MixupInference",
            "fell: mixed with clean images (ICLR 2020); fitted=FILE",
        ),
        "dknn": Entry("robustkit_defenses.fallen.dknn:DkNN", "fell: neighbours vote (arXiv:1803.04765); fitted=FILE"),
        "lid": Entry(
            "robustkit_defenses.fallen.lid:LID", "fell: a detector by dimension (arXiv:1801.02613); fitted=FILE"
        ),
        "decoder-projection": Entry(
            "robustkit_defenses.fallen.decoder_projection:DecoderProjection",
            "fell: on a decoder's images (arXiv:1805.06605); fitted=FILE",
        ),
        "magnet": Entry(
            "robustkit_defenses.fallen.magnet:MagNet",
            "fell: autoencoders reject and reform (arXiv:1705.09064); fitted=FILE",
        ),
        "diffusion": Entry(
            "robustkit_defenses.fallen.diffusion:Diffusion",
            "fell: noise added and taken off (arXiv:2205.07460); fitted=FILE",
        ),
        "ecoc": Entry("robustkit_defenses.fallen.ecoc:ECOC", "fell: error-correcting codes (NeurIPS 2019)"),
        "empir": Entry("robustkit_defenses.fallen.empir:EMPIR", "fell: a vote of mixed precision (ICLR 2020)"),
        "binarised": Entry(
            "robustkit_defenses.fallen.binarised:Binarised", "fell: weights and activations of ±1 (arXiv:1711.00449)"
        ),
        "random-mixture": Entry(
            "robustkit_defenses.fallen.mixture:RandomMixture",
            "fell: one of several networks answers (arXiv:2002.11565)",
        ),
    },
    recipes={
        "behind": Entry(
            "robustkit_defenses.recipes.behind:Behind", "a network behind a defense=SPEC that needs its own"
        ),
        "feature-scattering": Entry(
            "robustkit_defenses.recipes.feature_scattering:FeatureScattering",
            "fell: scattered batches (NeurIPS 2019)",
        ),
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
