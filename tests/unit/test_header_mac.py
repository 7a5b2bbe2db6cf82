"""The MAC that binds a header to a key."""

from __future__ import annotations

import json

import pytest
from attrs import evolve
from test_header import forged, judged

from lukshook.errors import Refused
from lukshook.luks import header
from lukshook.luks.mac import _hkdf as hkdf
from lukshook.system.secret import Secret
from support import header_forgery

MINE, YOURS = Secret(header_forgery.noise(32, "mine")), Secret(header_forgery.noise(32, "yours"))


def bound(image: bytearray) -> bytearray:
    """*image* with the MACs of both keys in its token."""
    found = judged(image)
    macs = {
        header.key_id(MINE): header.mac(found, 0, MINE),
        header.key_id(YOURS): header.mac(found, 1, YOURS),
    }
    return forged(image, header_forgery.put("tokens.0", json.loads(header.token(macs))))


def test_mac_of_genuine_header_fits() -> None:
    """The MACs in a token fit the header they were made for, for each of the keys."""
    found = judged(bound(header_forgery.luks2()))
    assert True is header.verify_mac(found, MINE)
    assert True is header.verify_mac(found, YOURS)
    assert {header.key_id(MINE), header.key_id(YOURS)} == set(header.find_macs(found))


@pytest.mark.parametrize(
    "image",
    [header_forgery.luks2(), header_forgery.luks1(), bound(header_forgery.luks2())],
    ids=["luks2", "luks1", "others"],
)
def test_no_mac_is_neither_right_nor_wrong(image: bytearray) -> None:
    """Where there is no MAC of a key, nothing is said about it."""
    assert header.verify_mac(judged(image), Secret(header_forgery.noise(32, "third"))) is None


@pytest.mark.parametrize(
    "change",
    [
        header_forgery.binary(168, header_forgery.OTHER_UUID.encode()),
        header_forgery.put("segments.0.sector_size", 512),
        header_forgery.put("segments.0.offset", str(header_forgery.OFFSET + 4096)),
        header_forgery.put("digests.0.iterations", 1001),
        header_forgery.put("keyslots.0.kdf.iterations", 1001),
        header_forgery.raw(2 * header_forgery.METADATA + 1, b"x"),
    ],
    ids=["UUID", "sector size", "offset", "digest", "key derivation", "key material"],
)
def test_mac_of_forged_header_does_not_fit(change: header_forgery.Change) -> None:
    """A change to volume, digest or one's own key slot makes the MAC wrong."""
    assert False is header.verify_mac(judged(forged(bound(header_forgery.luks2()), change)), MINE)


def test_change_of_another_slot_leaves_the_mac_right() -> None:
    """A second person's key slot can change without making mine stale."""
    found = judged(forged(bound(header_forgery.luks2()), header_forgery.put("keyslots.1.kdf", header_forgery.argon2())))
    assert True is header.verify_mac(found, MINE)
    assert False is header.verify_mac(found, YOURS)


def test_macs_cannot_be_exchanged() -> None:
    """A MAC made with one key is wrong under another's name, and the names tell nothing of the keys."""
    image = bound(header_forgery.luks2())
    macs = header.find_macs(judged(image))
    swapped = dict(zip(macs, reversed(macs.values()), strict=True))
    found = judged(forged(image, header_forgery.put("tokens.0.macs", swapped)))
    assert False is header.verify_mac(found, MINE)
    assert header_forgery.noise(32, "mine").hex()[:16] != header.key_id(MINE)


def test_mac_of_missing_slot_is_refused() -> None:
    """There is no MAC over a key slot that is not there."""
    with pytest.raises(Refused, match="no key slot 7"):
        header.mac(judged(header_forgery.luks2()), 7, MINE)


def test_mac_is_stable() -> None:
    """The MAC depends on what the header says only; this value is what older images carry."""
    found = judged(header_forgery.luks2())
    assert header.mac(found, 0, MINE) == header.mac(evolve(found, copies=1, tokens=()), 0, MINE)
    assert "d6b4a3fd75533251e690af6b18c1700a26125120f4097822de0226d611f623d8" == header.mac(found, 0, MINE)
    assert "030c7aeccfc95051" == header.key_id(MINE)


def test_hkdf_is_that_of_rfc_5869() -> None:
    """Keys are derived as in test case 3 of the RFC (no salt, no info), as far as one block goes."""
    expected = "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d"
    assert expected == hkdf(Secret(b"\x0b" * 22), b"").hex()
