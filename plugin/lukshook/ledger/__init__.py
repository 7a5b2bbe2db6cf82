"""What this host knows of the ciphertext of an image: a digest of every piece."""
