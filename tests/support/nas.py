"""A NAS on the loopback of a guest that systemd runs: the kernel's NFS server, or Samba, under the examples' name."""

from __future__ import annotations

from attrs import frozen

#: In the example, and of the server.
PASSWORD = "CHANGE-ME"
#: What the server has of the image.
_STORE = "/disk/nas/volume1/backup"
_NFS = f"""
modprobe -a nfsd nfsv4 autofs4
mkdir -p {_STORE} /var/lib/nfs /run/rpc_pipefs; chown 65534:65534 {_STORE}
printf '[exports]\\nrootdir=/disk/nas\\n' >/etc/nfs.conf
mount -t tmpfs none /var/lib/nfs
mkdir /var/lib/nfs/rpc_pipefs /var/lib/nfs/nfsdcld; touch /var/lib/nfs/etab /var/lib/nfs/rmtab
for folder in /var/lib/nfs/rpc_pipefs /run/rpc_pipefs; do mount -t rpc_pipefs none $folder; done
mount -t nfsd none /proc/fs/nfsd
echo '/volume1/backup 127.0.0.1(rw,sync,no_subtree_check)' >/etc/exports
systemd-run --quiet --unit=nas-clients nfsdcld --foreground
exportfs -ra
systemd-run --quiet --unit=nas-mountd rpc.mountd --foreground --no-nfs-version 3
"""
_SMB = f"""
modprobe -a cifs autofs4
mkdir -p {_STORE} /run/nas; chown backup {_STORE}
cat >/run/nas/smb.conf <<END
[global]
private dir = /run/nas
lock directory = /run/nas
state directory = /run/nas
cache directory = /run/nas
pid directory = /run/nas
ncalrpc dir = /run/nas/rpc
log file = /run/nas/log
disable netbios = yes
load printers = no
printing = bsd
[backup]
path = {_STORE}
read only = no
END
printf '{PASSWORD}\\n{PASSWORD}\\n' | smbpasswd -c /run/nas/smb.conf -s -a backup
"""
_LOCK = "import fcntl; fcntl.lockf(open('{}/backup.img', 'r+b'), fcntl.LOCK_EX | fcntl.LOCK_NB)"


@frozen
class Nas:
    """Shell commands, run as root: *prepare* once, then *start* and *stop*.

    *is_locked* succeeds where another host could not get the lock on the image.
    """

    example: str
    programs: tuple[str, ...]
    prepare: str
    start: str
    stop: str
    is_locked: str


NFS = Nas(
    "nas-nfs",
    ("rpc.nfsd", "rpc.mountd", "nfsdcld", "exportfs", "mount.nfs"),
    _NFS,
    "rpc.nfsd --no-nfs-version 3 --grace-time 10 --lease-time 10 2",
    "rpc.nfsd 0",
    f'! python3 -c "{_LOCK.format(_STORE)}"',
)
SMB = Nas(
    "nas-smb",
    ("smbd", "smbpasswd", "mount.cifs"),
    _SMB,
    "systemd-run --quiet --collect --unit=nas-smbd smbd -s /run/nas/smb.conf --foreground --no-process-group",
    "systemctl kill --signal=KILL nas-smbd; while systemctl is-active --quiet nas-smbd; do sleep 0.2; done",
    """
    mkdir -p /srv/other; mount -t cifs -o nosharesock,vers=3.1.1,credentials=/etc/lukshook/nas.password \
        //nas.example.org/backup /srv/other
    flock --nonblock /srv/other/backup.img true && free=yes || free=no
    umount /srv/other; test $free = no
    """,
)
