"""Where and how we work, and what one opening is about."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from attrs import frozen

from lukshook.config import Volume
from lukshook.keys import key_sources
from lukshook.layers.base import Opening, Trust
from lukshook.system import signals
from lukshook.system.command import Runner
from lukshook.system.secret import Secret
from lukshook.volume.judgement import Pinned
from lukshook.volume.known_state import Known, KnownState

if TYPE_CHECKING:
    from lukshook.notify.notices import Notices


@frozen(eq=False, repr=False)
class Site:
    """Where and how we work: our folders, who carries out commands, who asks for keys, where warnings go.

    *patience*: seconds to wait for those who still use a volume that is to be closed; *kill_holders*: end them then.
    *metrics*: a text file that is kept for a monitoring system, or None. *keeps_state*: what is known of the volume is
    written down, which an image without configuration has no place for. *mounts*: `mount_folder`, None for
    *run_folder*. *agent*: the socket of the caller's ssh-agent(1), "" for none.
    *notices*: whom to tell of backups, None for nobody.
    """

    run_folder: Path
    state_folder: Path
    runner: Runner
    ask: Callable[[Volume], Secret]
    warn: Callable[[str], None]
    patience: float = 30.0
    kill_holders: bool = False
    metrics: Path | None = None
    keeps_state: bool = True
    mounts: Path | None = None
    agent: str = ""
    notices: Notices | None = None

    @property
    def mount_folder(self) -> Path:
        """Where things are mounted or shown in private while a volume is open."""
        return self.mounts or self.run_folder

    def state(self, volume: Volume) -> KnownState:
        """What this host keeps of *volume*."""
        return KnownState(self.state_folder, volume.name)


def opening_of(volume: Volume, site: Site, trust: Trust | None = None, *, read_only: bool) -> Opening:
    """What one opening of *volume* is about, for the layers. *trust*: None where nothing is judged (a dry run)."""
    return Opening(
        volume=volume.name,
        runner=site.runner,
        run_folder=site.mount_folder,
        key=lambda: _ask(volume, site),
        key_from=key_sources.shown(volume.key),
        trust=trust or Pinned(volume.name, Known()),
        read_only=read_only,
        warn=site.warn,
        label=volume.label,
    )


def _ask(volume: Volume, site: Site) -> Secret:
    with signals.allowed():
        return site.ask(volume)
