"""LUKS headers: parse, check against the allow-list, pin, sign, write; and the calls of cryptsetup for them."""
