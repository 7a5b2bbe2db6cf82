"""Views of volumes that change nothing: status, check, metrics."""
