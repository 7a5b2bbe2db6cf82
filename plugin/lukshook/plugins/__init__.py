"""How other people's plugins are found, loaded and called."""
