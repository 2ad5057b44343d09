"""The suite fashion-resnet: ResNet-18 on Fashion-MNIST."""

from __future__ import annotations

from functools import partial

from benchmarks import fashion
from benchmarks.fashion import FILES, FULL, SHORT
from benchmarks.image_suite import show

__all__ = ["FILES", "FULL", "NAME", "SHORT", "run", "show"]

NAME = "fashion-resnet"
run = partial(fashion.run, counted=fashion.COUNTED_DROP)
