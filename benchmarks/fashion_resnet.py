"""The suite fashion-resnet: ResNet-18 on Fashion-MNIST."""

from __future__ import annotations

from benchmarks.fashion import FILES, FULL, SHORT, run
from benchmarks.image_suite import show

__all__ = ["FILES", "FULL", "NAME", "SHORT", "run", "show"]

NAME = "fashion-resnet"
