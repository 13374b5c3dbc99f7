"""Draw the loss of the trainings on one GPU and on two, from docs/results: `python docs/scripts/loss_curves.py`."""

from __future__ import annotations

import json

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from measurements import TWO_GPUS, training_loss

PICTURE = TWO_GPUS.parents[1] / "pictures" / "two-gpus.png"


def main() -> None:
    """Draw the picture."""
    runs = json.loads(TWO_GPUS.read_text(encoding="utf-8"))["runs"]
    figure, axis = plt.subplots(figsize=(7, 4), layout="constrained")
    for run in runs:
        loss = training_loss(run)
        one = run["name"].startswith("one")
        torchrun = run["name"].startswith("torchrun")
        # torchrun's curve lies on that of the same seed: dots show both
        style = ":" if torchrun else "-"
        colour = "tab:blue" if one else "black" if torchrun else "tab:orange"
        axis.plot(range(1, len(loss) + 1), loss, style, color=colour, label=run["name"], lw=2.5 if torchrun else 1.3)
    axis.set_xticks(range(0, len(loss) + 1, 5))
    axis.set_xlabel("epoch")
    axis.set_ylabel("training loss (box + cls + dfl)")
    axis.legend()
    figure.savefig(PICTURE, dpi=110)
    print(PICTURE)


if __name__ == "__main__":
    main()
