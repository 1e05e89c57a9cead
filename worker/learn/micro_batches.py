"""Micro-batches of a rank's share, and the rule for updating BatchNorm's statistics.

All functions are pure. Statistics of a few values are meaningless: a single value per channel has
no variance, and the gradient explodes. BatchNorm therefore uses its running statistics in a pass
over far fewer images than usual, as in the last batch of an epoch.
"""

from dataclasses import dataclass

from worker.numbers import ceil_div


@dataclass(frozen=True, kw_only=True)
class Passes:
    """Forward and backward passes of one rank over a job's batches."""

    full_batch: int
    """Images in a full global batch."""
    world_size: int
    """The number of ranks."""
    micro_batch: int | None
    """Maximum number of images in a pass; None to process a rank's share in one pass."""
    synchronized: bool
    """Whether BatchNorm's statistics are computed over all ranks. If so, decisions are based on the
    planned numbers of images, so that all ranks decide alike.
    """

    @property
    def usual(self) -> int:
        """Images in the smallest pass of a full batch."""
        if self.synchronized:
            return self._planned(self.full_batch)
        share = ceil_div(self.full_batch, self.world_size)
        # `tensor_split` makes parts that differ by at most one image; this is the size of the
        # smallest.
        return share // self.count(share, self.full_batch)

    def count(self, images: int, global_count: int) -> int:
        """Return the number of passes over the `images` in a rank's share of a global batch."""
        # SyncBatchNorm waits for all ranks in every pass, so all must make the same number of
        # passes.
        if self.synchronized:
            images = ceil_div(global_count, self.world_size)
        return ceil_div(max(1, images), self.micro_batch or max(1, images))

    def give_statistics(self, images: int, global_count: int) -> bool:
        """Return whether BatchNorm may take its statistics from a pass.

        It may if the pass has more than half the usual number of images. In an experiment on images
        of 32 pixels, ResNet-18's gradient for 2 of 8 images was 300 times as large as for all 8,
        and for 4 of 8 images, four times as large; with the running statistics, it was no larger.

        Args:
            images: Images in the pass.
            global_count: Images in the global batch that the pass belongs to.
        """
        if self.synchronized:
            images = self._planned(global_count)
        return 2 * images > self.usual

    def is_short(self, global_count: int) -> bool:
        """Return whether any rank might use running statistics in a step with no bad samples."""
        least = self._planned(global_count)
        return 2 * least <= self.usual or least == 1

    def _planned(self, global_count: int) -> int:
        """Return the number of images in the smallest pass of any rank."""
        # Ranks get one of these two shares, which differ by at most one image.
        shares = {global_count // self.world_size, ceil_div(global_count, self.world_size)}
        return min(share // self.count(share, global_count) for share in shares)
