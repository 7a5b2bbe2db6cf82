"""Growing by itself: decided once a volume has been opened for a backup, before the host starts, never in between."""

from __future__ import annotations

import os

from lukshook import size
from lukshook.config import Volume
from lukshook.errors import LukshookError
from lukshook.options.values import Grow
from lukshook.resize.job import Job
from lukshook.resize.plan import exact
from lukshook.resize.resizing import Interaction, resize_locked
from lukshook.store.image_file import ImageFile, open_image
from lukshook.volume.context import Site
from lukshook.volume.work import work_on


def grow_if_due(volume: Volume, site: Site) -> None:
    """Grow an open volume when it is as full as `grow` says. What fails is a warning: what fits now still fits.

    The key is asked for again only when it really grows.
    """
    rule = volume.grow
    if rule is None:
        return
    try:
        if not _is_nearly_full(volume, rule):
            return
        with open_image(volume.image.image, writable=True) as image:
            text = _text(volume, rule, image.size, site)
            if text:
                _grow(volume, image, text, site)
    except (LukshookError, OSError) as error:
        reason = error.message if isinstance(error, LukshookError) else error.strerror
        site.warn(f"automatic growth of volume {volume.name} failed: {reason}")


def _grow(volume: Volume, image: ImageFile, text: str, site: Site) -> None:
    silent = Interaction(lambda done, total: None, lambda question: False, lambda line: None)
    with work_on(volume, site) as work:
        fill = work.state.known.fill or volume.image.fill
        resize_locked(Job(work, image, work.trust(), fill, silent.progress), text, silent)


def _is_nearly_full(volume: Volume, rule: Grow) -> bool:
    found = os.statvfs(volume.mountpoint)
    return found.f_bavail * 100 < rule.when_free_below * found.f_blocks


def _text(volume: Volume, rule: Grow, length: int, site: Site) -> str:
    """The size to grow to, as one would type it, or "" where it has its full size."""
    if length >= rule.up_to:
        site.warn(f"volume {volume.name} is nearly full and has reached its maximum size of {size.show(rule.up_to)}")
        return ""
    return f"+{exact(rule.by)}" if length + rule.by <= rule.up_to else exact(rule.up_to)
