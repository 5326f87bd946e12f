"""Train the network for a few seconds; write its weights and its images."""

from pathlib import Path

import torch
from nets import build
from patterns import draw_all, save
from torch.nn import functional

IMAGE_COUNT, EPOCHS, BATCH = 800, 8, 32


def train():
    """Return the trained network; it takes images as `(x / 255 - 0.5) / 0.5`."""
    torch.manual_seed(0)
    torch.set_num_threads(1)  # more threads do not help a network this small
    pixels, labels = (torch.from_numpy(array) for array in draw_all(0, IMAGE_COUNT))
    images = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
    net = build()
    optimizer = torch.optim.Adam(net.parameters(), 0.003)
    for epoch in range(EPOCHS):
        for chosen in torch.randperm(IMAGE_COUNT).split(BATCH):
            loss = functional.cross_entropy(net(images[chosen]), labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}")
    return net


save(Path("pictures/calibration"), seed=1, count=128)
save(Path("pictures/evaluation"), seed=2, count=400)
torch.save(train().state_dict(), "net.pt")
