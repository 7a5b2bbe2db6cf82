"""A mapping of device-mapper that is open: the same for every kind of target."""

from __future__ import annotations

from attrs import frozen

from lukshook.errors import Busy
from lukshook.layers.base import LayerHandle
from lukshook.system import kernel
from lukshook.system.command import CommandFailed, Runner

#: Where device-mapper nodes live (libdevmapper's DM_DIR).
NODES = "/dev/mapper/"
#: How long a mapping may take to disappear, in seconds.
GONE_SECONDS = 30.0


@frozen(repr=False)
class MappingHandle(LayerHandle):
    """Its node, name, device-mapper uuid, device number, and the number of the device under it."""

    path: str
    name: str
    uuid: str
    number: str
    under: str

    def close(self, runner: Runner) -> None:
        """Close the mapping if it is still that one, and wait until it is gone. Raises `Busy`."""
        if not self.inspect():
            return
        for command in self.close_commands():
            try:
                runner.run(command)
            except CommandFailed as error:
                if not self.inspect():
                    return
                raise Busy(f"the mapping {self.name} is still in use: {error.result.reason}") from error
        if not kernel.wait_until(lambda: not self.inspect(), GONE_SECONDS):
            raise Busy(f"timed out waiting for the mapping {self.name} to disappear")

    def inspect(self) -> bool:
        """Whether the mapping of that name has that uuid, that number, and stands on that device."""
        found = kernel.mapping(self.name)
        return (
            found is not None and (found.uuid, found.number) == (self.uuid, self.number) and self.under in found.under
        )
