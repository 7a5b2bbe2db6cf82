"""What lukshook has to know of one kind of file system; each file of this package says it of one kind."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from attrs import frozen

from lukshook.system.command import Command, Result, Runner


@frozen(repr=False)
class Facts:
    """What a super block says."""

    #: As the tools of the kind print it.
    uuid: str
    #: Bytes that have to fit into the device: for btrfs, which can have several, its part on this one.
    size: int
    #: Bytes of a block.
    block: int
    #: Whether it notes errors.
    errors: bool
    #: A count that only rises and so tells an older image from a newer one; None where the kind has none.
    written: int | None
    #: Whether it was unmounted in good order, without errors, and no check is due.
    clean: bool = False
    #: Whether the journal has something to replay.
    unfinished: bool = False
    #: Whether the last writer has unmounted it, whatever errors were noted since.
    unmounted: bool = True
    #: Whether it keeps a second host out.
    mmp: bool = False
    #: When it was last written, in seconds since the epoch, by the clock of who wrote it; None where it does not say.
    last_write: float | None = None


@frozen(repr=False)
class Owners:
    """What lies in some part of a file system.

    *files*: paths of files and folders, from its top. *own*: bytes of its own data, and of files whose inode cannot be
    read. *unused*: bytes that nothing is in.
    """

    files: tuple[str, ...]
    own: int
    unused: int


def no_hindrance(descriptor: int, size: int, mounted: bool) -> str:
    """For kinds that can get any size that fits."""
    return ""


def no_limit(length: int) -> int | None:
    """For kinds that grow from any size to any other in one step."""
    return None


def nothing_lacks() -> str:
    """For kinds that every user who may mount them may also grow."""
    return ""


def unchanged(make: tuple[str, ...]) -> tuple[str, ...]:
    """For kinds that are made alike for every writer."""
    return make


def never(path: str) -> bool:
    """For kinds that only the kernel writes to, or that do not tell."""
    return False


@frozen(eq=False, repr=False)  # every hook makes this class, and never compares or shows one
class Kind:
    """One kind of file system. What has a default is what not every kind has.

    Commands are words to which the device or file is added. "Mounted" and "unmounted" say how it is while its size
    changes. A user who is not root mounts with fuse2fs, so the fields for that concern only a kind that it can mount.
    """

    #: The command that makes it.
    make: tuple[str, ...]
    #: What the super block in the file of a descriptor says, or None where it is of another kind.
    facts: Callable[[int], Facts | None]
    #: Bytes of the smallest that is made.
    least: int
    #: The programs that it needs in its life; system/platforms.py has their packages and the versions to avoid.
    tools: tuple[str, ...]
    #: The command that makes it a number of bytes large at a place: the mount point, or the device if *unmounted*.
    resize: Callable[[str, int], Command]
    #: Mount options for reading only: not even the journal is replayed, the image stays byte for byte as it is.
    read_only: tuple[str, ...]
    #: Mount options for writing, besides those of every mount.
    options: tuple[str, ...] = ()

    #: The check before it is mounted for writing, where it is not clean; empty where there is nothing to run.
    check: tuple[str, ...] = ()
    #: The check before it is mounted read-only, where it is not clean: it changes nothing.
    look: tuple[str, ...] = ()
    #: The exit statuses of *check* after which it may be mounted.
    clean: frozenset[int] = frozenset({0})
    #: The exit statuses of *check* that mean that it could not be checked.
    unchecked: frozenset[int] = frozenset()
    #: Whether its super block says if the last writer has unmounted it (`Facts.clean`).
    records_unmount: bool = False
    #: Bytes that one more in `Facts.written` stands for; None where it counts something else.
    written_unit: int | None = None
    #: Where its super block lies, in bytes.
    super_block: int = 0
    #: Whether `Facts.written` in the file at a path is what a holder of the key wrote, and no noise in its place.
    is_sealed: Callable[[str], bool] = never
    #: How many errors the mounted one on a device, "major:minor", has met since; None where the kernel does not count.
    errors_met: Callable[[str], int] | None = None
    #: Whether its mounts have a device number of their own, of major 0, and each subvolume one more.
    own_numbers: bool = False

    #: The command that has it keep a second host out; empty for a kind that cannot.
    protect: tuple[str, ...] = ()
    #: What *check* prints on standard error where a second host has it.
    kept_out: str = ""

    #: Whether it can be resized unmounted.
    unmounted: bool = False
    #: The whole check that has to come before it is resized unmounted, and after the store has lost writes.
    recheck: tuple[str, ...] = ()
    #: Its bytes as seen at a mount point; None where its super block says that also while it is mounted.
    mounted_size: Callable[[str, Runner], int | None] | None = None
    #: Why it can never get a number of bytes, mounted or not, in words, or "": by its features, whatever is in it.
    hindrance: Callable[[int, int, bool], str] = no_hindrance
    #: Bytes that an image of so many can grow to in one step, or None.
    largest_step: Callable[[int], int | None] = no_limit
    #: The capability that this process lacks for growing it mounted, or "".
    lacks: Callable[[], str] = nothing_lacks
    #: Mount options that are set before it grows mounted, and after that.
    around_growing: tuple[str, str] | None = None
    #: Bytes below which the tool would not shrink it, or None where it cannot say; None: lukshook does not shrink it.
    minimum: Callable[[str, Facts, Runner], int | None] | None = None
    #: What a whole check that changes nothing finds wrong in one that was made smaller, in words, or "".
    prove: Callable[[str, Runner], str] | None = None
    #: How a person starts such a check.
    prove_by_hand: str = ""
    #: What lies in some extents (offset and length in bytes) of the one in a file or device; None where the kind has no
    #: tool that says so.
    owners: Callable[[str, Facts, Iterable[tuple[int, int]], Runner], Owners] | None = None

    #: *make* for a writer that does not use the journal.
    without_journal: Callable[[tuple[str, ...]], tuple[str, ...]] = unchanged
    #: Whether its super block is neither the old nor the new one, after fuse2fs was killed.
    is_torn: Callable[[str], bool] = never
    #: Whether it may not open again once fuse2fs was killed, as it was made for the kernel.
    is_fragile: Callable[[str], bool] = never
    #: Repairs what a killed fuse2fs left, where the result of *check* asks for it; gives the result of the last check.
    repair: Callable[[str, Result, Runner], Result] | None = None

    @property
    def shrinks(self) -> bool:
        """Whether lukshook shrinks it: only where it can be seen to be whole afterwards."""
        return self.minimum is not None and self.prove is not None
