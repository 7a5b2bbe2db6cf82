"""The version, where looking at it imports nothing."""

VERSION = "0.1.0"
