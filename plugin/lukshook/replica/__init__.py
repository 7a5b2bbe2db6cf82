"""A second copy of an image elsewhere: it is always one whole state of the image, the old or the new one."""
