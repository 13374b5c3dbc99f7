"""The operator without any YOLO: sample a map at learned places, and learn them.

Every output pixel starts out looking at its own place and shall learn to look elsewhere: the target is the map moved by
(1.5, -0.5) pixels.
"""

from __future__ import annotations

import torch

from yolo_dcnv4.ops import backend, dcnv4


def main() -> None:
    """Fit one offset by gradient descent and print it."""
    torch.manual_seed(0)
    shift = torch.tensor([1.5, -0.5])
    # (N, H, W, C), smooth so that a gradient leads the way
    rows, columns = torch.meshgrid(torch.arange(24.0), torch.arange(32.0), indexing="ij")
    phase = torch.rand(8)
    value = torch.sin(columns[..., None] / 5 + 6 * phase) + torch.cos(rows[..., None] / 4 + 6 * phase)
    target = torch.sin((columns[..., None] + shift[0]) / 5 + 6 * phase) + torch.cos(
        (rows[..., None] + shift[1]) / 4 + 6 * phase
    )
    value, target = value[None], target[None]

    offset = torch.full((2,), 0.1, requires_grad=True)
    optimizer = torch.optim.Adam([offset], lr=0.05)
    for _ in range(150):
        # a window of one point: per pixel one offset pair (dx, dy) and one weight
        point = torch.cat((offset, torch.ones(1)))
        moved = dcnv4(value, point.expand(1, 24, 32, 3), groups=1, kernel_size=1, padding=0)
        # away from the border, where the map ends
        loss = (moved - target)[:, 3:-3, 3:-3].square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"served by the {backend('cpu').name!r} backend")
    print(
        f"offset ({offset[0]:.2f}, {offset[1]:.2f}), the map was moved by ({shift[0]:.2f}, {shift[1]:.2f}); "
        f"loss {loss:.1e}"
    )


if __name__ == "__main__":
    main()
