"""The kinds of file system that a volume can have: all that lukshook knows of each one, in one file."""
