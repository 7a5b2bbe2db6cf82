"""What lukshook reads and repairs of a file system itself: super blocks, and ext4 after a kill."""
