"""The layers of an engine, one file each, and the guarded mount point."""
