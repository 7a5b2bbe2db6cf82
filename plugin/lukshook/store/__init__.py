"""The image file and the store it lies on: open, measure, extend, and ask whether the store answers."""
