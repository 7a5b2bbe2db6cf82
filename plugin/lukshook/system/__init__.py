"""What talks to the kernel and starts tools: processes, mounts, files, signals, logs. Volumes are not known here."""
