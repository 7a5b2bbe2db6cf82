"""What is done to one volume: open, close, create, trust, change its header; its record and its state."""
