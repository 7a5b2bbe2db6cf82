"""The version, where looking at it imports nothing."""

VERSION = "0.2.0"
