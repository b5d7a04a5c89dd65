"""Milliseconds of matching and of the multibox loss, forward and backward.

python benchmarks/loss.py               # 8 images of 20 objects, SSD300's 8,732 default boxes
"""

import argparse

import torch

from multibox.build import build_network, matcher
from multibox.commands.bench.bench import random_batch
from multibox.commands.bench.timing import Work, timed
from multibox.ssd.loss import multibox_loss
from multibox.structures import Output

CLASSES = 20


def main() -> None:
    """Prints the medians for the objects of `random_batch`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--network", default="ssd300-vgg16")
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--times", type=int, default=20, help="times 5 runs of each work")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    network = build_network(options.network, CLASSES)
    match, batch = matcher(network, difficult=True), random_batch(options.images, network)
    shape = options.images, network.default_boxes.shape[0]
    generator = torch.Generator().manual_seed(0)
    offsets = torch.randn(*shape, 4, generator=generator, requires_grad=True)
    logits = torch.randn(*shape, CLASSES + 1, generator=generator, requires_grad=True)

    def loss() -> None:
        positives = (batch.matches.classes > 0).sum().float()
        losses = multibox_loss(Output(offsets, logits), batch.matches, positives)
        torch.autograd.backward(losses.confidence + losses.localization)
        offsets.grad = logits.grad = None

    def both() -> None:
        match(batch.targets)
        loss()

    works = [
        Work("matching", lambda: match(batch.targets), options.images),
        Work("loss", loss, options.images),
        Work("both", both, options.images),
    ]
    for figure in timed(works, torch.device("cpu"), times=options.times):
        print(f"{figure.name:9} {1000 * figure.seconds:6.2f} ms", flush=True)


if __name__ == "__main__":
    main()
