"""What lies beside a replica while it is mixed: somebody who finds it there may know nothing of lukshook."""

from __future__ import annotations

import shlex

#: What is added to a replica's name while a change of it is not complete.
UNFINISHED = (".journal", ".READ-ME-FIRST")

_TEXT = """\
READ ME FIRST: do not use {name} as it is.

A change of it was interrupted: some parts of it are new already, others are still old. All that is new lies in
{journal}. The change has to be finished before {name} can be opened.

On the host that makes this copy, run the same command again. It finishes the change first:

    lukshook copy NAME {name}

If that host is gone, finish it by hand. Needed are Python 3 and these three files. Go to this folder and run:

python3 - {quoted} {quoted_journal} <<'END'
import os, struct, sys
journal, image = open(sys.argv[2], "rb"), open(sys.argv[1], "r+b")
fields = struct.unpack("<16sII16sQQQQ", journal.read(72))
piece, size = fields[2], fields[7]
assert fields[0] == b"lukshook journal" and fields[1] == 1, "this is not the journal"
image.truncate(size)
while True:
    number, length, digest = struct.unpack("<QI16s", journal.read(28))
    if number == 2**64 - 1:
        break
    content = journal.read(length) if length else bytes(min(piece, size - number * piece))
    assert len(content) == min(piece, size - number * piece), "the journal is not complete"
    image.seek(number * piece)
    image.write(content)
image.flush()
os.fsync(image.fileno())
print("finished:", sys.argv[1])
END

It can be run any number of times. When it has said "finished", remove {journal} and this file.
"""


def text(name: str, journal: str) -> bytes:
    """What the file says, for a replica and a journal of these names."""
    return _TEXT.format(
        name=name, journal=journal, quoted=shlex.quote(f"./{name}"), quoted_journal=shlex.quote(f"./{journal}")
    ).encode(errors="surrogateescape")
