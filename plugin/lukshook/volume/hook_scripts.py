"""What an interpreter was started for: its `-c` text or its script file, and which hooks that calls.

Both are judged by their bytes. Nothing is run, expanded or included.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from attrs import frozen

#: Bytes of a script that are looked at.
_MOST = 1 << 20
#: Where a shell keeps the script that it reads: bash 255, dash and busybox 10 (seen with bash 5.2, dash 0.5.12).
_SCRIPT_DESCRIPTORS = (255, 10)


@frozen(eq=False, repr=False)
class _Kind:
    """A kind of interpreter: the option that brings the program as text, and those that are followed by a value.

    Python's option for a module counts as text: there is no script then.

    *is_shell*: the text is the first word after all options, and without a script the program is read from stdin.
    """

    text: str
    value: str
    is_shell: bool = False


# Patterns, compiled when they are needed: most commands look at no script.
_SHELL = _Kind("-[A-Za-z]*c[A-Za-z]*", "[-+][A-Za-z]*[oO]|--rcfile|--init-file", is_shell=True)
_PYTHON = _Kind("-[A-Za-z]*[cm]", "-[WX]")
_PERL = _Kind("-[a-ln-zA-HJ-LN-Z0-9]*[eE]", "-I")
_FROM_STDIN = "-[A-Za-z]*s[A-Za-z]*"
_SHELLS = frozenset({"sh", "dash", "bash", "rbash", "ash", "zsh", "ksh", "ksh93", "mksh", "lksh", "yash"})

_TOKEN = (
    rb"(?<![\w./-])(?:before-backup|after-backup)(?![\w./-])"
    rb"|(?<![^\s;&|(){}])(?:case|esac|if|then|elif|else|fi)(?![^\s;&|()\[])|;;"
)
_COMMENT = rb"(?m)(?:^|(?<=\s))#.*"


def name_of(words: Sequence[str]) -> str:
    """The program that the command line *words* starts; for `busybox sh` that is `sh`."""
    return Path(words[len(words) - len(_arguments(words)) - 1]).name.lstrip("-") if words else ""


def is_shell(words: Sequence[str]) -> bool:
    """Whether the command line *words* is that of a shell."""
    return _kind(words) is _SHELL


def has_text(words: Sequence[str]) -> bool:
    """Whether the program of an interpreter is in its command line (`sh -c`)."""
    kind = _kind(words)
    return kind is not None and _program(kind, _arguments(words))[0] is not None


def calls(pid: int, words: Sequence[str]) -> tuple[bool, bool] | None:
    """Whether what process *pid* interprets calls only one of the two hooks, and whether it calls both in one go.

    *words* is its command line. None where it is not an interpreter, or where its script cannot be read.
    """
    kind = _kind(words)
    program = _read_program(pid, kind, words) if kind else None
    if program is None:
        return None
    found = _places_of_calls(re.sub(_COMMENT, b"", program))
    before, after = (found.get(name, []) for name in (b"before-backup", b"after-backup"))
    both = any(_meet(one, other) for one in before for other in after)
    return bool(before or after) and not both, both


def _kind(words: Sequence[str]) -> _Kind | None:
    name = name_of(words)
    if name in _SHELLS:
        return _SHELL
    if re.fullmatch(r"python[\d.]*", name):
        return _PYTHON
    return _PERL if re.fullmatch(r"perl[\d.]*", name) else None


def _arguments(words: Sequence[str]) -> Sequence[str]:
    return words[2:] if Path(words[0]).name == "busybox" and len(words) > 1 else words[1:]


def _program(kind: _Kind, arguments: Sequence[str]) -> tuple[str | None, str | None]:
    """The text that was given, or else the name of the script; None for what there is not."""
    given = False
    rest = iter(arguments)
    for word in rest:
        if word in ("-", "--") or word[:1] not in ("-", "+"):
            first = next(rest, None) if word in ("-", "--") else word
            return (first, None) if given else (None, first)
        if re.fullmatch(kind.text, word):
            if not kind.is_shell:
                return next(rest, None), None
            given = True
        if kind.is_shell and not given and re.fullmatch(_FROM_STDIN, word):
            return None, None
        if re.fullmatch(kind.value, word):
            next(rest, None)
    return None, None


def _read_program(pid: int, kind: _Kind, words: Sequence[str]) -> bytes | None:
    text, script = _program(kind, _arguments(words))
    if text is not None:
        return os.fsencode(text)
    places = _places(pid, kind, script)
    return next((found for place in places if (found := _content(place)) is not None), None)


def _places(pid: int, kind: _Kind, script: str | None) -> Iterator[str]:
    """Where the script may be found. What a shell has open is the script itself, whatever its name leads to now."""
    if script is None:
        if kind.is_shell:
            yield f"/proc/{pid}/fd/0"
        return
    if kind.is_shell:
        yield from (f"/proc/{pid}/fd/{number}" for number in _SCRIPT_DESCRIPTORS)
    if script.startswith(("/dev/", "/proc/")):  # there they would be our own
        return
    if script.startswith("/"):
        yield f"/proc/{pid}/root{script}"
        yield script
    else:
        yield f"/proc/{pid}/cwd/{script}"


def _content(place: str) -> bytes | None:
    """The first bytes of a regular file, None for anything else: a pipe or a device is not even opened."""
    try:
        looked = os.open(place, os.O_PATH | os.O_CLOEXEC)
    except (OSError, ValueError):
        return None
    try:
        if not stat.S_ISREG(os.fstat(looked).st_mode):
            return None
        with open(f"/proc/self/fd/{looked}", "rb", buffering=0) as file:  # noqa: PTH123
            return file.read(_MOST)
    except OSError:
        return None
    finally:
        os.close(looked)


#: In which branch of which `case` and `if` a call stands, both by number.
_Place = dict[int, int]


def _places_of_calls(program: bytes) -> dict[bytes, list[_Place]]:
    """Where a shell script calls each of the hooks. The condition of an `if` is branch 0: it is run always."""
    found: dict[bytes, list[_Place]] = {}
    inside: list[list[int]] = []
    for number, token in enumerate(re.findall(_TOKEN, program)):
        if token in (b"case", b"if"):
            inside.append([number, int(token == b"case")])
        elif token in (b"esac", b"fi"):
            del inside[-1:]
        elif token.endswith(b"-backup"):
            found.setdefault(token, []).append({construct: branch for construct, branch in inside if branch})
        elif inside and (token != b"then" or not inside[-1][1]):
            inside[-1][1] += 1
    return found


def _meet(one: _Place, other: _Place) -> bool:
    """Whether one run can come through both: they stand in no two branches of the same construct."""
    return all(other.get(construct, branch) == branch for construct, branch in one.items())
