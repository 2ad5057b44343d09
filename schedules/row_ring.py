"""The lists of the input rows that an output row sees: of all rows if they are given, else in a ring, row by row."""

from __future__ import annotations

from tvm.script import tirx as T

from schedules.conv2d_shape import Conv2d
from schedules.cpu import Isa
from schedules.inlining import inline
from schedules.nonzero_rows import RowLists, list_row


class RowRing:
    """Where a task's output rows find the lists of the input.

    Attributes
    ----------
    lists : RowLists
        Of the ring, which all tasks have a part of; of one row, which nobody reads, if lists are given.
    own : int
        Words of a task's part.
    """

    def __init__(self, isa: Isa, conv: Conv2d, threads: int, reads_lists: bool) -> None:
        """List the rows of a convolution's images, or with `reads_lists` find them listed."""
        self._isa, self._conv, self._reads = isa, conv, reads_lists
        self.lists = RowLists(1 if reads_lists else threads * conv.reach[0], conv.width, conv.inputs)
        self.own = 0 if reads_lists else conv.reach[0] * self.lists.block

    def block(self, image, row, task):
        """Return where the lists of a row begin: among all rows', or in the task's part of the ring."""
        if self._reads:
            return (image * self._conv.height + row) * self.lists.block
        slots = self._conv.reach[0]
        return (task * slots + row % slots) * self.lists.block

    def kernel_rows(self, top):
        """Return the rows of the kernel, from the first on and up to the last, that lie inside an image.

        `top` is the input row that the first one sees, or would see.
        """
        conv, gap = self._conv, self._conv.dilation[0]
        start = T.max(0, (gap - 1 - top) // gap)
        return start, T.max(start, T.min(conv.kernel[0], (conv.height - 1 - top) // gap + 1))

    def fill(self):
        """Return the macro ``(x, ring, ready, row, task)`` that lists what output row `row` sees first.

        ``ready: i32[1]`` counts the rows of the image that are listed already.
        """
        conv, reads, slots, inside = self._conv, self._reads, self._conv.reach[0], self._conv.width * self._conv.inputs
        listed, block = list_row(self._isa, self.lists), self.block

        @inline
        def filled(x, ring, ready, row, task):
            if not reads:
                image: T.let = row // conv.out_height
                top: T.let = row % conv.out_height * conv.strides[0] - conv.padding[0]
                bottom: T.let = T.min(top + slots, conv.height)
                if row % conv.out_height == 0:
                    ready[0] = 0
                for seen in T.serial(T.max(ready[0], T.max(top, 0)), bottom):
                    listed(x, (image * conv.height + seen) * inside, ring, block(image, seen, task))
                ready[0] = T.max(ready[0], bottom)

        return filled
