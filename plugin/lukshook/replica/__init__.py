"""A copy of an image elsewhere that is one complete state at every moment."""
