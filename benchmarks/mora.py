"""MORA beside APGD-T at equal gradient evaluations, on ensembles of three kit networks joined in three ways.

    python -m benchmarks.mora -n 100

MORA runs 14 times 64 steps, APGD-T 9 times 100: 896 against 909 gradients for a sample that stands to the end. Votes
pass no gradient: there APGD-T attacks the mean of the logits, and what it found is put to the vote.
"""

import argparse
import logging

import torch

import robustkit
from benchmarks import kit
from robustkit.models.ensembles import Ensemble

NETWORKS = ("cifar10_cnn_a_std", "cifar10_marabou_small", "cifar10_conv_small_pgd2")
MORA, APGD_T = "mora:steps=64", "apgd:loss=dlr-targeted"


def main():
    """Run and print a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-n", type=int, default=100)
    parser.add_argument("--eps", default="4/255")
    given = parser.parse_args()
    logging.disable(logging.INFO)
    data = kit.cifar10(range(given.n))
    print("| joined by | clean % | robust % MORA | robust % APGD-T | backwards MORA | backwards APGD-T |")
    print("|---|---|---|---|---|---|")
    for join in ("logits", "probs", "vote"):
        ensemble = Ensemble([kit.model(name=name) for name in NETWORKS], join).eval()
        mora = robustkit.evaluate(ensemble, data, MORA, eps=given.eps)
        if join == "vote":
            target = Ensemble([kit.model(name=name) for name in NETWORKS]).eval()
            apgd = robustkit.evaluate(target, data, APGD_T, eps=given.eps, save_adversarial=True)
            found = apgd.adversarial
            adv = data[0].clone()
            if found is not None:
                adv[torch.from_numpy(found["index"])] = torch.from_numpy(found["adv"])
            right = (ensemble(adv).argmax(1) == data[1]) & (ensemble(data[0]).argmax(1) == data[1])
            robust = float(right.double().mean())
        else:
            apgd = robustkit.evaluate(ensemble, data, APGD_T, eps=given.eps)
            robust = float(apgd.robust_accuracy)
        spent = [sum(row.backwards for row in record.by_attack) for record in (mora, apgd)]
        print(
            f"| {join} | {100 * float(mora.clean_accuracy):.1f} | {100 * float(mora.robust_accuracy):.1f} | "
            f"{100 * robust:.1f} | {spent[0]:,} | {spent[1]:,} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
