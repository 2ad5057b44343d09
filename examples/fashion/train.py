"""Train a VGG- or ResNet-like network on Fashion-MNIST and write it as ONNX.

    apt-get install dataset-fashion-mnist
    python examples/fashion/train.py --network vgg --out vgg.onnx     # half an hour on one core

The result is what `tvm-dual bench fashion-vgg --checkpoint` takes. All steps but the last (`--full-steps`) see images
at half the size, which takes a quarter of the time.
"""

import argparse
import io
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.fashion_data import HELD_BACK, NETWORKS, SIZE, Fashion, read_fashion
from tvm_dual.container import refuse_unwritable
from tvm_dual.errors import TvmDualError

#: Steps of gradient descent between two lines of progress.
REPORT = 50


def train(
    network: nn.Module,
    data: Fashion,
    epochs: int,
    batch: int,
    rate: float,
    decay: float,
    full_steps: int | None = None,
    bf16: bool = False,
) -> None:
    """Train with SGD, the step size going up and then down over all steps (Smith and Topin, 2018).

    The last `full_steps`, one epoch if absent, see images at their full size; with `bf16` products are in bfloat16.
    """
    images, labels = (torch.from_numpy(values[:-HELD_BACK]) for values in (data.images, data.labels))
    steps = len(labels) // batch
    optimizer = torch.optim.SGD(network.parameters(), rate, momentum=0.9, weight_decay=decay, nesterov=True)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * steps, pct_start=0.25)
    small = epochs * steps - (steps if full_steps is None else full_steps)
    start, loss_mean = time.monotonic(), float("nan")
    for epoch in range(epochs):
        order = torch.randperm(len(labels))
        for step in range(steps):
            some = order[step * batch : (step + 1) * batch]
            x = images[some]
            if torch.rand(()) < 0.5:
                x = x.flip(3)
            if epoch * steps + step < small:
                x = nn.functional.avg_pool2d(x, 2)
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                found = network(x.contiguous(memory_format=torch.channels_last))
            loss = nn.functional.cross_entropy(found.float(), labels[some], label_smoothing=0.05)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            loss_mean = loss.item() if step == 0 else 0.95 * loss_mean + 0.05 * loss.item()
            if (step + 1) % REPORT == 0:
                place = f"epoch {epoch + 1} of {epochs}, step {step + 1} of {steps}"
                print(f"{place}: loss {loss_mean:.3f}, {(time.monotonic() - start) / 60:.1f} min")


@torch.inference_mode()
def accuracy(network: nn.Module, data: Fashion) -> float:
    """Return the share of images whose highest output is their label's."""
    network.eval()
    found = [network(torch.from_numpy(some)).argmax(1).numpy() for some in np.split(data.images, 20)]
    return float((np.concatenate(found) == data.labels).mean())


def onnx_bytes(network: nn.Module) -> bytes:
    """Return the network for one image of float32 (1, 1, 28, 28), batch normalization folded into the weights."""
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        # The exporter that needs no further package is announced as deprecated.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.eval().to(memory_format=torch.contiguous_format),
            (torch.zeros(1, 1, SIZE, SIZE),),
            buffer,
            input_names=["image"],
            output_names=["scores"],
            opset_version=17,
            dynamo=False,
        )
    return buffer.getvalue()


def main() -> int:
    """Train and write the network."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", choices=NETWORKS, default="vgg")
    parser.add_argument("--out", type=Path, required=True, help="ONNX file to write")
    parser.add_argument("--data", type=Path, help="folder of the four .gz files; where Debian puts them, if absent")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--rate", type=float, default=0.1, help="highest step size")
    parser.add_argument("--decay", type=float, default=5e-4, help="weight decay")
    parser.add_argument("--full-steps", type=int, help="last steps, at full image size; an epoch, if absent")
    parser.add_argument("--bf16", action="store_true", help="products in bfloat16: faster where the CPU has AMX")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, help="as many as cores, if absent")
    options = parser.parse_args()
    if min(options.epochs, options.batch) < 1 or min(options.rate, options.decay, options.full_steps or 0) < 0:
        parser.error("accepted are one epoch and image a step or more, and steps and rates that are not negative")
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    try:
        refuse_unwritable(options.out, "--out")
        torch.manual_seed(options.seed)
        network = NETWORKS[options.network]().to(memory_format=torch.channels_last)
        data = read_fashion("train", options.data)
        train(
            network,
            data,
            options.epochs,
            options.batch,
            options.rate,
            options.decay,
            options.full_steps,
            options.bf16,
        )
        options.out.write_bytes(onnx_bytes(network))
        print(f"accuracy on the test images: {accuracy(network, read_fashion('t10k', options.data)):.4f}")
    except TvmDualError as error:
        print(f"train: {error}", file=sys.stderr)
        return 2
    print(f"wrote {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
