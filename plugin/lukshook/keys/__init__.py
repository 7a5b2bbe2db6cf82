"""Where keys come from: one file for each key source."""
