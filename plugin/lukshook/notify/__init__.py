"""Messages about backups to services and people: the channels of `[notify]`, and how a message gets there."""
