"""An image of a Ceph cluster: `rbd:pool/name` or `rbd:pool/namespace/name`.

Each connection is a qemu-nbd(8) on this side, which speaks to the cluster by librbd. Who has an image open for writing
watches it, and the cluster lists the watchers of an image (`rbd status`): we look before we open it, and again when our
own watcher is there. So of two hosts that open it at once, at least one sees the other. A host that the cluster has not
heard of for half a minute is no watcher any more. The image's exclusive lock fences it off: whoever writes next takes
the lock over, and then the cluster refuses what the former one still sends. So that it does not come back with a new
connection, who opens the image leaves a mark in its metadata, and each connection begins with a look at that (`mark`).
"""

from __future__ import annotations

import json
import shlex
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, ClassVar

from attrs import evolve, frozen

from lukshook.errors import Denied, Exists, LukshookError, Unavailable
from lukshook.store.block_target import BlockTarget
from lukshook.store.remote import mark
from lukshook.store.remote.block_copies import block_target
from lukshook.store.remote.kind import Abilities, Link, Locked, Seen, Store, connecting, ours, reason
from lukshook.store.remote.parts import Parts
from lukshook.system import kernel, signals
from lukshook.system.command import Command, Result, Runner, change, read
from lukshook.system.text import clipped, fault_of_path, one_line

#: The user of Ceph where the configuration names none, as with its own tools.
USER = "admin"
#: Seconds that a tool waits for the cluster's answer, and that we wait for the tool.
_ANSWER, _SECONDS, _LONG_SECONDS = 30, 120.0, 3600.0
_LIMITS = (
    f"--client_mount_timeout={_ANSWER}",
    f"--rados_mon_op_timeout={_ANSWER}",
    f"--rados_osd_op_timeout={_ANSWER}",
)
#: Seconds: until the cluster forgets a watcher that was killed (osd_client_watch_timeout is 30); that another one, such
#: as a tool of an administrator, may be there beside ours; between two looks.
_FORGETS, _PASSES, _AGAIN = 45.0, 10.0, 1.0
#: The features of a new image: the lock, and what makes measuring fast.
_LOCK = "exclusive-lock"
#: In the metadata of the image: who has opened it last for writing.
_HOLDER = "lukshook.holder"
_FEATURES = f"layering,{_LOCK},object-map,fast-diff"
#: Exit statuses of rbd(8): they are those of errno(3).
_DENIED, _ABSENT, _KEY_REFUSED, _EXISTS, _TIMED_OUT = 1, 2, 13, 17, 110
_EVERY = range(256)
_MOST_SHOWN = 300
#: Ends qemu-nbd, and kills it where the cluster does not let it end; the socket goes in any case.
_END = (
    'end() { kill "$p"; n=0; while kill -0 "$p" && [ $n -lt 50 ]; do n=$((n+1)); sleep 0.1; done; kill -9 "$p"; '
    "rm -f @SOCKET@; } 2>/dev/null"
)


@frozen
class Rbd(Store):
    """*pool*, *namespace* ("" for the default one) and *name* of the image. *config*: a ceph.conf, or None.

    *token*: a file with our mark, which is there while an opening of ours has not come to its end. *beside_of*: the
    image whose mark counts for this one too, None for its own.
    """

    pool: str
    namespace: str
    name: str
    user: str = USER
    config: Path | None = None
    token: Path | None = None
    beside_of: Rbd | None = None

    abilities: ClassVar[Abilities] = Abilities(
        lock=True,
        measure=True,
        create=True,
        reserve=False,
        grow=True,
        reboots=True,
        synced=True,
        snapshots=True,
        copies=True,
    )
    tools: ClassVar[tuple[str, ...]] = ("rbd", "ceph", "qemu-nbd")
    changed: ClassVar[str] = "has let another host open the image, or has another image under that name"

    def with_ceph(self, user: str, config: Path | None) -> Rbd:
        """The same, as that user."""
        return evolve(self, user=user or USER, config=config)

    def with_token(self, token: Path) -> Rbd:
        """The same, with that file."""
        return evolve(self, token=token)

    @property
    def words(self) -> tuple[str, ...]:
        """The options by which Ceph's tools find the image."""
        namespace = (f"--namespace={self.namespace}",) if self.namespace else ()
        return (*self._login, f"--pool={self.pool}", *namespace, f"--image={self.name}")

    @property
    def _login(self) -> tuple[str, ...]:
        return (*((f"--conf={self.config}",) if self.config else ()), f"--id={self.user}")

    def link(self, *, read_only: bool, silence: float) -> Link:
        """One qemu-nbd, which goes with the connection. It must not keep writes to itself: those would go with it."""
        place = "@FOLDER@/rbd.@PID@"
        only = ("--read-only",) if read_only else ()
        serve = ("setpriv", "--pdeathsig", "TERM", "qemu-nbd", *only, f"--socket={place}", "--discard=unmap")
        begin = (
            _END,
            f"{shlex.join((*serve, '--image-opts', self._driver()))} </dev/null >&2 & p=$!",
            "trap end EXIT; trap 'exit 1' TERM INT HUP",
        )
        check = () if read_only else self._is_marked()
        words = (*ours("rbd_connection"), "@FOLDER@", str(silence), place, "@SERVER@", *check)
        script = connecting(words, "\n".join((*begin, ""))).replace("@SOCKET@", place)
        return Link("EXEC:sh @FOLDER@/connect", script.replace("@PID@", "$$").replace("@SERVER@", '"$p"'))

    def _is_marked(self) -> tuple[str, ...]:
        """What succeeds only if nobody else has opened the image since: our mark is still in its metadata."""
        image = self.beside_of or self
        own = mark.kept(image.token, image.url)
        get = ("rbd", "image-meta", "get", *image.words, *_LIMITS, _HOLDER)
        same = '[ "$("$@")" = "$0" ] || { echo "error: another host has opened the image since" >&2; exit 1; }'
        return ("sh", "-c", same, own, *get) if own else ()

    def _driver(self) -> str:
        """The image for qemu. Without its cache, a write is answered when every OSD in charge has stored it."""
        parts = {
            "driver": "raw",
            "file.driver": "rbd",
            "file.cache.direct": "on",
            "file.conf": str(self.config or ""),
            "file.user": self.user,
            "file.pool": self.pool,
            "file.namespace": self.namespace,
            "file.image": self.name,
        }
        return ",".join(f"{name}={value.replace(',', ',,')}" for name, value in parts.items() if value)

    def refusal(self, said: str, status: int | None) -> Unavailable:
        """What qemu said."""
        if "driver 'rbd'" in said:
            from lukshook.system import platforms  # noqa: PLC0415 - only where it is missing

            hint = platforms.install_hint("block-rbd.so", platforms.this_system())
            return Unavailable("qemu on this machine cannot use Ceph: its module for that is not installed", hint=hint)
        why = clipped(reason(said), _MOST_SHOWN) or "the connection was closed"
        return Unavailable(f"{self.url} is not served: {why}", hint=f"does this work? {self._by_hand('info')}")

    def fetch(self, file: str) -> str:
        """With Ceph's own tool."""
        return f"{self._by_hand('export')} {file}"

    def look(self, runner: Runner) -> Seen:
        """The length and the identity of the image, and whose it is."""
        found = self._info(runner)
        return Seen(None) if found is None else Seen(found["size"], 0, identity=f"{found['id']} {self._holder(runner)}")

    def hold(self, runner: Runner, *, read_only: bool) -> Seen:
        """Look who has it open, measure, leave our mark. Only what an earlier opening of ours left is waited for."""
        found = self._info(runner)
        free, total = self._room(runner)
        if found is not None:
            if _LOCK not in found["features"] and not read_only:
                raise Unavailable(
                    f"the image {self.url} has no exclusive lock: nothing would stop a second host",
                    hint=f"switch that on: {self._by_hand('feature enable')} {_LOCK}",
                )
            self._wait_until_alone(runner, 0, _FORGETS if self.token is not None and self.token.exists() else 0.0)
        if self.token is not None and not read_only:
            self._leave_mark(runner, self.token, there=found is not None)
        if found is None:
            return Seen(None, 0, free, total)
        return Seen(found["size"], self._allocated(runner), free, total, f"{found['id']} {self._holder(runner)}")

    def _leave_mark(self, runner: Runner, token: Path, *, there: bool) -> None:
        own = mark.fresh() if there else ""  # an image that is being made has none
        mark.keep(token, own)
        if there:
            self._change(runner, "change", "image-meta", "set", more=(_HOLDER, own))

    def _holder(self, runner: Runner) -> str:
        """The mark in the metadata, "" for none."""
        command = read("rbd", "image-meta", "get", *self.words, *_LIMITS, _HOLDER, ok=_EVERY, timeout=_SECONDS)
        result = runner.run(command)
        if result.code not in (0, _ABSENT):
            raise self._failure(result, "look at")
        return result.out.removesuffix("\n")

    def check_alone(self, runner: Runner) -> None:
        """Our own watcher is there by now, and no other, or both of us see that and leave."""
        self._wait_until_alone(runner, 1, _PASSES)

    def let_go(self, runner: Runner) -> None:
        """Our watcher has gone with its connection."""
        mark.drop(self.token)

    def unfinished(self) -> Rbd:
        """As on a local store: the name begins with a dot."""
        return evolve(self, name=f".{self.name}.lukshook-new")

    def create(self, length: int, fill: str, runner: Runner) -> None:
        """Make the image, of holes; one that is there stays. What a removal that was killed has left is removed."""
        words = ("create", f"--size={length}B", f"--image-feature={_FEATURES}")
        try:
            self._change(runner, "make", *words)
        except Exists:
            if self._info(runner) is not None:
                raise
            self._change(runner, "remove", "remove", "--no-progress", ok=_ABSENT)
            self._change(runner, "make", *words)

    def publish(self, runner: Runner) -> None:
        """By a rename, which never replaces another image."""
        namespace = (f"--dest-namespace={self.namespace}",) if self.namespace else ()
        where = (f"--dest-pool={self.pool}", *namespace, f"--dest={self.name}")
        self.unfinished()._change(runner, "name", "rename", *where)

    def remove(self, runner: Runner) -> None:
        """Remove the image. A killed host may watch it for half a minute."""
        if self._info(runner) is not None:
            self._wait_until_alone(runner, 0, _FORGETS)
            self._change(runner, "remove", "remove", "--no-progress", ok=_ABSENT)

    def resize(self, length: int, fill: str, runner: Runner) -> None:
        """Cut it, or give it more: only if nobody has it open, and nobody else has opened it since.

        Nothing keeps out a host that opens it just after that look, before the cluster has changed the size.
        """
        self._wait_until_alone(runner, 0, _PASSES)
        image = self.beside_of or self
        own = mark.kept(image.token, image.url)
        if own and image._holder(runner) != own:
            raise Unavailable(f"another host has opened {image.url} since", hint="wait until it closes the image")
        self._change(runner, "change the size of", "resize", f"--size={length}B", "--allow-shrink", "--no-progress")

    def replica(self, runner: Runner, *, writable: bool) -> AbstractContextManager[BlockTarget]:
        """The copy is an image; what lies beside it for a time is in another one."""
        return block_target(self, runner, writable=writable)

    def beside(self, suffix: str) -> Rbd:
        """In the same pool and namespace."""
        return evolve(self, url=self.url + suffix, name=self.name + suffix, token=None, beside_of=self)

    def ask(self, runner: Runner, *words: str) -> Any:
        """What rbd(8) says of the image, None where there is none. Raises `Denied`, `Unavailable`."""
        result = runner.run(self._command(read, words, ("--format=json",)))
        if result.code == _ABSENT and "error opening image" in result.err:
            return None
        if result.code:
            raise self._failure(result, "look at")
        try:
            return json.loads(result.out)
        except ValueError as error:
            raise self._strange() from error

    def do(self, runner: Runner, *words: str) -> None:
        """Let rbd(8) change something. Raises as `ask`."""
        self._change(runner, words[0], *words)

    def _info(self, runner: Runner) -> Mapping[str, Any] | None:
        found = self.ask(runner, "info")
        if found is None:
            return None
        try:
            return {"size": int(found["size"]), "id": str(found["id"]), "features": list(found["features"])}
        except (KeyError, TypeError, ValueError) as error:
            raise self._strange() from error

    def _allocated(self, runner: Runner) -> int:
        """Bytes that the image takes; 0 where the cluster does not say."""
        with suppress(KeyError, TypeError, ValueError, IndexError):
            return int(self.ask(runner, "du")["images"][-1]["used_size"])
        return 0

    def _room(self, runner: Runner) -> tuple[int, int] | tuple[None, None]:
        """Bytes that can still be stored in the pool, and all; None where the cluster does not say."""
        limit = f"--connect-timeout={_ANSWER}"
        asked = read("ceph", *self._login, limit, "df", "--format=json", ok=_EVERY, timeout=_SECONDS)
        result = runner.run(asked)
        with suppress(KeyError, TypeError, ValueError):
            pools = {pool["name"]: pool["stats"] for pool in json.loads(result.out)["pools"]}
            free, stored = (int(pools[self.pool][name]) for name in ("max_avail", "stored"))
            return free, free + stored
        return None, None

    def _wait_until_alone(self, runner: Runner, ours: int, seconds: float) -> None:
        """Wait until no others than *ours* watch the image. Raises `Locked`, which names one, after that time."""
        end = time.monotonic() + seconds
        while True:
            watchers = self._watchers(runner)
            if len(watchers) <= ours:
                return
            if time.monotonic() > end:
                break
            signals.check()
            kernel.wait_until(lambda: False, _AGAIN)
        names = clipped(one_line(", ".join(watchers)), _MOST_SHOWN)
        raise Locked(
            f"another process or host has {self.url} open: the cluster lists {names}"
            + (", which is one of them this host" if ours else ""),
            hint=f"wait until it is closed there; who it is: {self._by_hand('status')}",
        )

    def _watchers(self, runner: Runner) -> list[str]:
        found = self.ask(runner, "status")
        try:
            return [] if found is None else [str(one["address"]) for one in found["watchers"]]
        except (KeyError, TypeError) as error:
            raise self._strange() from error

    def _change(self, runner: Runner, what: str, *words: str, more: tuple[str, ...] = (), ok: int = 0) -> None:
        result = runner.run(self._command(change, words, more, _LONG_SECONDS))
        if result.code not in (0, ok):
            raise self._failure(result, what)

    def _command(self, make: Any, words: tuple[str, ...], more: tuple[str, ...], seconds: float = _SECONDS) -> Command:
        command: Command = make("rbd", *words, *self.words, *_LIMITS, *more, ok=_EVERY, timeout=seconds)
        return command

    def _by_hand(self, verb: str) -> str:
        return shlex.join(("rbd", *verb.split(" "), *self.words))

    def _strange(self) -> Unavailable:
        return Unavailable(
            f"Ceph gave an answer about {self.url} that lukshook does not understand", hint=self._by_hand("info")
        )

    def _failure(self, result: Result, what: str) -> LukshookError:
        """What the exit status of rbd(8) means, and whether it got as far as the cluster."""
        client, why = f"client.{self.user}", clipped(result.reason, _MOST_SHOWN)
        connected = "couldn't connect" not in result.err
        if not connected and result.code in (_ABSENT, _KEY_REFUSED):
            return Denied(
                f"Ceph does not let {client} in: there is no keyring for it, or the cluster has another key",
                hint=f"does this work? {self._by_hand('info')}; ceph_user names another user, docs/ceph.md says more",
            )
        if result.code == _DENIED and connected:
            return Denied(
                f"Ceph does not let {client} {what} {self.url}: {why}",
                hint=f"its capabilities have to name that pool and namespace: ceph auth get {client}; docs/ceph.md",
            )
        if result.code == _TIMED_OUT:
            return Unavailable(
                f"the Ceph cluster of {self.url} does not answer", hint="is it healthy? ceph -s; docs/ceph.md"
            )
        if result.code == _EXISTS:
            return Exists(f"the image {self.url} already exists", hint="move it away, or name another one")
        if result.code == _ABSENT and "pool" in result.err:
            return Unavailable(
                f"the cluster has no pool {self.pool}", hint="make it (docs/ceph.md), or correct the image's URL"
            )
        return Unavailable(f"Ceph could not {what} {self.url}: {why}", hint=self._by_hand("info"))


def found_by(words: Iterable[str]) -> Rbd:
    """The image that these options of Ceph's tools name (`Rbd.words`)."""
    given = dict(word.removeprefix("--").split("=", 1) for word in words)
    pool, namespace, name = (given.get(option, "") for option in ("pool", "namespace", "image"))
    url = "rbd:" + "/".join(filter(None, (pool, namespace, name)))
    config = Path(given["conf"]) if "conf" in given else None
    return Rbd(url, pool, namespace, name, given.get("id", USER), config)


def parse(parts: Parts) -> Rbd:
    """The image that a URL names. Raises ValueError."""
    names = parts.path.split("/")
    fault = fault_of_path(parts.path)
    if fault or len(names) not in (2, 3) or not all(names) or any("@" in name for name in names):
        raise ValueError(fault or 'a URL such as "rbd:pool/name" or "rbd:pool/namespace/name"')
    return Rbd(parts.url, names[0], names[1] if len(names) == 3 else "", names[-1])
