"""The options: what reads each, what it means in a line, and what holds where it is not written."""

from __future__ import annotations

from typing import Any

from attrs import frozen

from lukshook.filesystems.kinds import DEFAULT, KINDS
from lukshook.layers import engines
from lukshook.layers.image import FILLS
from lukshook.options import values
from lukshook.options.reader import Reader
from lukshook.snapshots.kind import KEPT


@frozen(eq=False, repr=False)  # every start of lukshook pays for what attrs makes
class Option:
    """One option. *default*: as it would be written; None where leaving it out means that there is none of it."""

    read: Reader[Any]
    about: str
    default: Any = None


#: Every option of a volume.
OPTIONS: dict[str, Option] = {
    "image": Option(
        values.image,
        "Absolute path of the image, or its URL (ssh, sftp, nbd, nbds, rbd), such as ssh://user@host/path.",
    ),
    "patience": Option(values.patience, "How long writing waits while the connection is down.", "10m"),
    "ssh_config": Option(values.path, "Configuration file for ssh, in place of your own and the system's."),
    "tls_certificates": Option(values.path, "Folder with the certificates that an NBD server with TLS is verified by."),
    "tls_psk": Option(values.path, "File with the key that this host and an NBD server with TLS share."),
    "ceph_user": Option(values.ceph_user, "The user of Ceph, without client. in front.", "admin"),
    "ceph_config": Option(values.path, "The ceph.conf of the cluster, in place of the system's."),
    "mountpoint": Option(values.mountpoint, "Absolute path of the empty folder where the volume appears."),
    "key": Option(
        values.sources, "Where the key comes from, such as file:/root/offsite.key, or a list of such places."
    ),
    "size": Option(values.image_size, "Size of a new image, such as 500GiB. Only create reads it."),
    "fill": Option(values.choice(FILLS), "How a new image gets its blocks.", "fallocate"),
    "filesystem": Option(values.choice(KINDS), "The file system in the volume.", DEFAULT),
    "engine": Option(values.choice(engines.CHOICES), "kernel: dm-crypt, needs root. userspace: qemu.", "auto"),
    "soft": Option(values.boolean, "Exit with 75 instead of 69 while the volume is not available.", False),
    "stale_after": Option(values.duration, "How old the last good backup may be for soft to be quiet.", "7d"),
    "max_open": Option(values.duration, "How long a volume may stay open by hand; `close --overdue` closes it then."),
    "read_only": Option(values.boolean, "Every opening is read-only.", False),
    "discard": Option(values.boolean, "Tell the store which blocks are unused, so that it can free them.", False),
    "mmp": Option(values.boolean, "The file system keeps a second host out.", False),
    "ledger": Option(values.boolean, "Keep a digest of every piece of the image, so that verify finds damage.", False),
    "drill": Option(values.drill, "What lukshook drill does if its command line does not say otherwise."),
    "header_backup_at": Option(values.line, "Where a copy of the header backup is, away from this machine."),
    "copies": Option(values.copies, "Copies of the image elsewhere, brought up to date after each backup."),
    "space": Option(values.choice(("refuse", "warn")), "What happens when the store has too little room.", "refuse"),
    "grow": Option(values.grow, "Grow a nearly full volume before the backup starts."),
    "old_fuse2fs": Option(values.boolean, "Mount an ordinary user's volume with an old fuse2fs too.", False),
    "mode": Option(values.mode, "Permissions of the volume's root folder.", "0700"),
    "snapshot": Option(values.snapshot, "Take a snapshot of the store after each good backup."),
    "keep_snapshots": Option(values.count, "How many snapshots are kept.", KEPT),
    "snapshot_hard": Option(values.boolean, "If the snapshot fails, exit with 69.", False),
    "prune_command": Option(values.argv, 'A command that removes what snapshot = "command:..." has made.'),
    "versions": Option(values.patterns, "Paths with wildcards where others make copies of the image."),
}
NEEDED = ("image", "mountpoint", "key")
#: Every option of the whole file.
FILE_OPTIONS: dict[str, Option] = {
    "metrics": Option(values.path, "A file for node_exporter's textfile collector, written after each backup."),
}
#: Options of snapshots, which mean nothing without one.
OF_SNAPSHOTS = ("keep_snapshots", "snapshot_hard", "prune_command")


def has_mmp(kind: str | None) -> bool:
    """Whether the kind of file system is one that can keep a second host out."""
    return kind in KINDS and bool(KINDS[kind].protect)
