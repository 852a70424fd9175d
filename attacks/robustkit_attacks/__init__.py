"""Native attacks. One attack, one file; this table is all that adding one needs besides."""

from robustkit.plugins import Entry, Plugin


def _preset(name: str, summary: str) -> Entry:
    """A well-known transfer attack: a function that composes it."""
    return Entry(f"robustkit_attacks.transfer.presets:{name}", summary)


PLUGIN = Plugin(
    attacks={
        "fgsm": Entry("robustkit_attacks.fgsm:FGSM", "one signed-gradient step (arXiv:1412.6572)"),
        "pgd": Entry("robustkit_attacks.pgd:PGD", "projected gradient descent with restarts (arXiv:1706.06083)"),
        "cw": Entry(
            "robustkit_attacks.cw:CW",
            "Carlini–Wagner, nearest in L2; margin form in Linf (arXiv:1608.04644)",
        ),
        "apgd": Entry("robustkit_attacks.apgd:APGD", "Auto-PGD: no step size to tune (arXiv:2003.01690)"),
        "multi-targeted": Entry(
            "robustkit_attacks.multi_targeted:make", "APGD towards each wrong class (arXiv:1910.09338)"
        ),
        "fab": Entry("robustkit_attacks.fab:FAB", "Fast Adaptive Boundary, nearest adversarial (arXiv:1907.02044)"),
        "square": Entry("robustkit_attacks.square:Square", "random search, scores only (arXiv:1912.00049)"),
        "mora": Entry("robustkit_attacks.mora:MORA", "reweighs an ensemble's members (Yu, Gao, Xu, NeurIPS 2022)"),
        "surrogate-swap": Entry(
            "robustkit_attacks.surrogate_swap:SurrogateSwap", "declared stand-ins, then the model (arXiv:2411.14834)"
        ),
        "autoattack": Entry(
            "robustkit_attacks.autoattack:AutoAttack", "APGD-CE, APGD-T, FAB-T, Square (arXiv:2003.01690)"
        ),
        "fast": Entry(
            "robustkit_attacks.fast:Fast", "a cascade at about a tenth of AutoAttack's cost, which it is not"
        ),
        "strong": Entry("robustkit_attacks.strong:Strong", "AutoAttack, after what goes below it; never above it"),
        "descent": Entry("robustkit_attacks.descent:Descent", "a stage of fast: short runs on the nearest"),
        "fab-walk": Entry("robustkit_attacks.fab_walk:FabWalk", "a stage of fast: FAB-T down a ranking of margins"),
        "square-walk": Entry("robustkit_attacks.square_walk:SquareWalk", "a stage of fast: Square down a ranking"),
        "accepted": Entry(
            "robustkit_attacks.accepted:Accepted", "wrong and accepted, of models that may refuse (arXiv:2106.15023)"
        ),
        "search": Entry(
            "robustkit_attacks.search:Search",
            "halving over stand-ins and losses, each sample alone (arXiv:2102.11860)",
        ),
        "nes": Entry("robustkit_attacks.nes:NES", "gradients estimated from scores (arXiv:1804.08598)"),
        "adaptive": Entry(
            "robustkit_attacks.adaptive:Adaptive", "all that the model and its gradients call for (arXiv:2002.08347)"
        ),
        "transfer": Entry(
            "robustkit_attacks.transfer.attack:Transfer",
            "parts that compose, on surrogates: gradient=vmi,input=di+ti,ensemble=svre",
        ),
        "mi": _preset("mi", "momentum on the surrogates' mean logits (arXiv:1710.06081)"),
        "ni": _preset("ni", "the gradient where the momentum leads (arXiv:1908.06281)"),
        "vmi": _preset("vmi", "variance-tuned momentum (arXiv:2103.15571)"),
        "pgn": _preset("pgn", "penalised gradient norm, for flat maxima (arXiv:2306.05225)"),
        "di": _preset("di", "random resizing and padding (arXiv:1803.06978)"),
        "ti": _preset("ti", "the gradient smoothed over shifts (arXiv:1904.02884)"),
        "si": _preset("si", "scaled copies (arXiv:1908.06281)"),
        "admix": _preset("admix", "another picture admixed (arXiv:2102.00436)"),
        "ssa": _preset("ssa", "noise in the spectrum (arXiv:2207.05382)"),
        "sia": _preset("sia", "each block transformed by itself (arXiv:2309.14700)"),
        "bsr": _preset("bsr", "blocks shuffled and turned (arXiv:2308.10299)"),
        "logit-ensemble": _preset("logit_ensemble", "iterated FGSM on the surrogates' mean logits (arXiv:1710.06081)"),
        "loss-ensemble": _preset("loss_ensemble", "iterated FGSM on the surrogates' mean loss"),
        "svre": _preset("svre", "variance-reduced steps over surrogates (arXiv:2111.10752)"),
        "adaea": _preset("adaea", "surrogates weighted by how they transfer (arXiv:2308.02897)"),
        "smer": _preset("smer", "random visits of surrogates, reweighed (Tang et al., CVPR 2024)"),
        "cwa": Entry("robustkit_attacks.transfer.cwa:CWA", "common weakness attack and its parts (arXiv:2303.09105)"),
        "mi-sam": _preset("mi_sam", "CWA's flatness alone (arXiv:2303.09105)"),
        "mi-cse": _preset("mi_cse", "CWA's agreement of gradients alone (arXiv:2303.09105)"),
        "mi-cwa": _preset("mi_cwa", "both; the same as cwa (arXiv:2303.09105)"),
        "vmi-cwa": _preset("vmi_cwa", "CWA over neighbourhoods (arXiv:2303.09105)"),
        "ssa-cwa": _preset("ssa_cwa", "CWA with noise in the spectrum (arXiv:2303.09105)"),
        "adam-cwa": _preset("adam_cwa", "CWA with Adam outside (arXiv:2303.09105)"),
    },
    attack_sources={
        "torchattacks": Entry(
            "robustkit_attacks.foreign.torchattacks:TorchAttacks",
            "37 attacks of torchattacks",
            "robustkit-bench[attacks]",
        ),
        "foolbox": Entry(
            "robustkit_attacks.foreign.foolbox:Foolbox", "57 attacks of foolbox", "robustkit-bench[attacks]"
        ),
        "pyautoattack": Entry(
            "robustkit_attacks.foreign.pyautoattack:PyAutoAttacks",
            "AutoAttack by its authors",
            "robustkit-bench[attacks]",
        ),
    },
)
