"""A verification whose chunks are read by workers."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial

from onceclip.pipeline.cluster.machine import reached
from onceclip.pipeline.workers import Workers
from onceclip.stores.remote import everywhere
from onceclip.stores.shares import Checked, Share, Whole, check
from onceclip.stores.verify import Spread


def spread_over(workers: Workers) -> Spread:
    """Have workers check the shares of a store."""

    def spread(shares: Iterable[Share | Whole]) -> Iterable[Checked]:
        return workers.work(check_share, (replace(each, store=everywhere(each.store)) for each in shares), twice=True)

    return spread


def check_share(share: Share | Whole) -> Checked:
    """Check a share wherever this process is."""
    return reached(share.store, partial(check, share))
