"""The micro-batches of a rank's share, and which of them may update BatchNorm's statistics.

Pure. Statistics of a few values are no statistics: those of one value per channel have no variance,
and their gradient explodes. So BatchNorm uses its running statistics in a pass over far fewer
images than usual, as of the last batch of an epoch.
"""

from dataclasses import dataclass

from worker.numbers import ceil_div


@dataclass(frozen=True, kw_only=True)
class Passes:
    """The passes of a job's batches on one rank."""

    full_batch: int
    """Images of a global batch that is full."""
    world_size: int
    """The number of ranks."""
    micro_batch: int | None
    """The most images of a pass; None if a rank's share is one pass."""
    synchronized: bool
    """Whether BatchNorm's statistics are those of all ranks. Then each pass is counted by what was
    planned, as all ranks must do the same.
    """

    @property
    def usual(self) -> int:
        """Images in the smallest pass of a full batch."""
        if self.synchronized:
            return self._planned(self.full_batch)
        share = ceil_div(self.full_batch, self.world_size)
        return share // self.count(share, self.full_batch)

    def count(self, images: int, global_count: int) -> int:
        """Return the number of passes for the `images` that a rank has of a global batch."""
        if self.synchronized:
            images = ceil_div(global_count, self.world_size)
        return ceil_div(max(1, images), self.micro_batch or max(1, images))

    def give_statistics(self, images: int, global_count: int) -> bool:
        """Return whether BatchNorm may take its statistics from a pass.

        From more than half the usual number of images on, by experiment: with 2 of 8 images of 32
        pixels, ResNet-18's gradient is 300 times that of 8 images, with 4 of 8 four times; with the
        running statistics it is no larger.

        Args:
            images: Images of the pass.
            global_count: Images of the global batch that it is a part of.
        """
        if self.synchronized:
            images = self._planned(global_count)
        return 2 * images > self.usual

    def is_short(self, global_count: int) -> bool:
        """Return whether some rank may use running statistics in a step, by what is planned."""
        least = self._planned(global_count)
        return 2 * least <= self.usual or least == 1

    def _planned(self, global_count: int) -> int:
        """Return the images in the smallest pass of any rank."""
        shares = {global_count // self.world_size, ceil_div(global_count, self.world_size)}
        return min(share // self.count(share, global_count) for share in shares)
