"""How this host gets to remote stores, as the options of a volume say: for its image, and for its copies."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attrs import frozen

if TYPE_CHECKING:
    from lukshook.store.remote.kind import Store


@frozen
class Access:
    """What each option says, None or its default where it is not given (docs/configuration.md)."""

    ssh_config: Path | None = None
    tls_certificates: Path | None = None
    tls_psk: Path | None = None
    ceph_user: str = "admin"
    ceph_config: Path | None = None

    @staticmethod
    def of(values: Mapping[str, Any]) -> Access:
        """Those that are among the options *values*."""
        return Access(**{a.name: values[a.name] for a in Access.__attrs_attrs__ if a.name in values})

    @property
    def verifies(self) -> bool:
        """Whether there is something to verify a server with TLS by."""
        return self.tls_certificates is not None or self.tls_psk is not None

    def to(self, store: Store) -> Store:
        """*store*, reached that way."""
        found = store.with_tls(self.tls_certificates, self.tls_psk).with_ceph(self.ceph_user, self.ceph_config)
        return found.with_config(self.ssh_config)
