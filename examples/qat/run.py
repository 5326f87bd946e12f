"""Train the quantized network of the demo with labels, in a plain torch loop, and build its run."""

from pathlib import Path

import torch
from torch.nn import functional

import qconvert
from qconvert.demo import generator
from qconvert.demo.demo_files import NETWORK
from qconvert.train import finish, prepare


def draw(seed, count):
    """Return drawn images as the network reads them, and their classes."""
    drawn = [generator.draw_image(seed, number) for number in range(count)]
    pixels = torch.stack([torch.tensor(image.decode()) for image in drawn])
    return pixels.permute(0, 3, 1, 2) / 127.5 - 1, torch.tensor([image.label for image in drawn])


images, labels = draw(generator.TRAINING_SEED, 512)
generator.write_images(Path("pictures"), generator.EVALUATION_SEED, 200)

module = prepare(NETWORK, backend="cpu", settings={"bench.seconds": 0.5})
module.observe(images[:128])
module.fix_ranges()

optimizer = torch.optim.AdamW(module.parameter_groups(lr=3e-4))
schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=len(images) // 32)
for chosen in torch.randperm(len(images)).split(32):
    scores = module(images[chosen])
    loss = functional.cross_entropy(scores, labels[chosen], label_smoothing=0.05)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    schedule.step()
    print(f"loss {float(loss.detach()):.3f}")

run = qconvert.resume(finish(module, "run"), eval="pictures", precisions=["fp32", "int8"])
print()
for variant in run.report.variants:
    print(f"{variant.name:10} top-1 {variant.accuracy.top1:.2f} %")
