"""A sheet with a share of a key: some of the sheets together open the image, one alone opens nothing."""

from __future__ import annotations

from attrs import frozen

from lukshook.report.sheet import Code, Sheet

#: Words of a share on a line.
_ON_A_LINE = 3
_TOOL = (
    "To open the image without lukshook, on any Linux with cryptsetup, as root: install the standard tool for shares\n"
    "(SLIP-0039). With another Linux than Debian 13: pip install 'shamir-mnemonic[cli]' in a venv"
)


@frozen
class ShareSheet:
    """One of *total* sheets, of which *needed* open the volume of *sheet*, which has no key.

    *slots*: the key slots that their key opens; none where that is not known yet.
    """

    sheet: Sheet
    number: int
    total: int
    needed: int
    share: str
    slots: tuple[int, ...] = ()

    @property
    def title(self) -> str:
        """The first line."""
        name = self.sheet.volume.name
        return f"Share {self.number} of {self.total} of a key of volume {name} - keep it away from the other shares"

    def facts(self) -> tuple[tuple[str, str], ...]:
        """How many are needed, and what the image is."""
        needed = f"any {self.needed} of the {self.total} sheets; fewer of them open nothing and say nothing"
        return (
            ("Needed", needed),
            *(fact for fact in self.sheet.facts() if fact[0] != "Another key"),
            ("Revoked by", f"lukshook key remove {self.sheet.volume.name} {self._slot_options()}"),
        )

    def code(self) -> Code:
        """The share."""
        caption = "(small letters, one blank between; no numbers)"
        return Code(self.share, "The share:", self._rows(), caption, large=False, fault_tolerance="m", square=3)

    def parts(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """How the shares become the key, with the standard tool."""
        return (
            (_TOOL, ("apt install python3-shamir-mnemonic python3-click",)),
            (
                f"Type the words of {self.needed} sheets into it. For KEY, type the 64 digits that it prints:",
                (
                    "python3 -m shamir_mnemonic.cli recover",
                    *self.sheet.opening("echo KEY | tr a-f A-F | basenc --base16 --decode"),
                ),
            ),
            *self.sheet.afterwards(),
            (
                "To try the shares without changing anything, now and then:",
                (f"lukshook drill {self.sheet.volume.name} --key shares",),
            ),
        )

    def in_text(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """With the share before them."""
        code = self.code()
        return ((f"{code.heading} {code.caption}", code.lines), *self.parts())

    def _rows(self) -> tuple[str, ...]:
        words = self.share.split(" ")
        starts = range(0, len(words), _ON_A_LINE)
        return tuple(
            f"{start + 1:>2} " + " ".join(f"{word:<8}" for word in words[start : start + _ON_A_LINE]).rstrip(" ")
            for start in starts
        )

    def _slot_options(self) -> str:
        """As they are typed: a command empties one key slot."""
        return ", then ".join(f"--slot {slot}" for slot in self.slots)
