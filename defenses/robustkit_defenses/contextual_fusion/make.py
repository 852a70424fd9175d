"""Fits the bundled head again: `python -m robustkit_defenses.contextual_fusion.make`.

Both branches are bundled networks, trained on scenes 0 to 5999; the head is fitted on scenes that they did not see.
"""

from dataclasses import asdict
from pathlib import Path

import click
import torch

import robustkit
from robustkit_defenses.contextual_fusion.file import BUNDLED, save_head
from robustkit_defenses.contextual_fusion.fitting import HeadPlan, train_fusion

FOREGROUND, BACKGROUND = "scenes-foreground", "scenes-background"
TRAIN, TEST = "scenes:split=train", "scenes"
FITTED, TRIED = range(6000, 10_000), range(2000)
PLAN = HeadPlan()


@click.command()
@click.option("--folder", type=click.Path(path_type=Path, file_okay=False, exists=True), default=BUNDLED, hidden=True)
def main(folder: Path) -> None:
    """Fit the head of the scenes networks and write it, card included."""
    torch.set_num_threads(1)  # sums over several threads round by their number
    foreground, background = (robustkit.load_model(name) for name in (FOREGROUND, BACKGROUND))
    fused = train_fusion(foreground[0], background[0], robustkit.load_dataset(TRAIN), PLAN, indices=FITTED)
    x, y = robustkit.load_dataset(TEST).batch(TRIED)
    with torch.no_grad():
        joint, alone = fused.forward_with_members(x)
    right = {
        name: round(float((logits.argmax(1) == y).double().mean()), 6)
        for name, logits in (("joint", joint), ("foreground", alone[0]), ("background", alone[1]))
    }
    card = {
        "name": "scenes",
        "foreground": {"model": FOREGROUND, "sha256": foreground[1].sha256},
        "background": {"model": BACKGROUND, "sha256": background[1].sha256},
        "dataset": TEST,
        "fitted_on": f"{TRAIN}, images {FITTED.start} to {FITTED.stop - 1}",
        "plan": asdict(PLAN),
        "clean_accuracy": right,
        "clean_accuracy_on": f"the first {len(TRIED)} images of {TEST}",
        "command": "python -m robustkit_defenses.contextual_fusion.make",
        "licence": "Apache-2.0",
    }
    save_head(fused.head, folder / "scenes.safetensors", card)
    click.echo(", ".join(f"{name} {share:.2%}" for name, share in right.items()))


if __name__ == "__main__":
    main()
