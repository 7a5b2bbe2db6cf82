"""Proof that a backup can be restored: verify, copy, heal, drill, versions."""
