"""`container:NAME`: a secret of a container, /run/secrets/NAME, as Docker and Podman mount it.

Both mount it for all users of the container to read (owner root, mode 0444; podman-secret-create(1), "Secrets" in
Docker's manual), on a tmpfs or as a bind mount. Kubernetes puts links to files of the same folder there.
"""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from lukshook.errors import Denied, Unavailable
from lukshook.keys.key_sources import MOST_BYTES, Asking, is_file_name
from lukshook.system import files, ownership

store = staged = replace = by_hand = None
_FOLDER = Path("/run/secrets")


def check(argument: str) -> str:
    """One plain file name."""
    return "" if is_file_name(argument) else "a secret's name has letters, digits, dot, dash and underscore"


def obtain(argument: str, asking: Asking) -> bytes:
    """Read what was looked at: owner and mode of each part of the path, and that it lies in the folder."""
    place = _FOLDER / argument
    try:
        with ownership.reached(place, os.geteuid()) as found:
            _check_safe(place, found)
            return files.read_found(found.descriptor, MOST_BYTES)
    except FileNotFoundError as error:
        raise Unavailable(
            f"there is no secret {argument} in {_FOLDER}",
            hint=f"in the service of the compose file: secrets: [{argument}]; or podman run --secret={argument}",
        ) from error
    except OSError as error:
        raise Denied(
            f"the secret {place} cannot be read: {error.strerror}",
            hint="it has to be a regular file that the user who runs lukshook may read",
        ) from error


def _check_safe(place: Path, found: ownership.Reached) -> None:
    if found.faults:
        raise Denied(
            f"the secret {place} is not safe from other users: {ownership.in_words(found.faults)}",
            hint="where the secret comes from, its file has to belong to root, with mode 0444 or stricter",
        )
    real = Path(os.readlink(f"/proc/self/fd/{found.descriptor}"))
    if not real.is_relative_to(_FOLDER.resolve()):
        raise Denied(
            f"the secret {place} is a link to a place outside of {_FOLDER}", hint="for a key elsewhere: file:PATH"
        )


def shown(argument: str) -> str:
    """cat."""
    return f"cat {shlex.quote(str(_FOLDER / argument))}"
