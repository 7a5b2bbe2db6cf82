"""What can be configured: how each value is written, read and described."""
