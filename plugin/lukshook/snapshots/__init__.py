"""Snapshots of the store: one file for each way to take them, and what others have taken."""
