"""Growing, shrinking and compacting."""
