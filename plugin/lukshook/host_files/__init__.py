"""What the backup tools' own configuration files say of a volume, for `check`: one file for each kind of file."""
