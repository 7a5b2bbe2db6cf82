"""Images at remote places: one file for each kind of store, and the processes that show such an image as a file."""
