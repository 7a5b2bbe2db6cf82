#!/bin/sh
# Save as /usr/local/sbin/rsync-@NAME@ (mode 0755), name your own folders, and call it from cron.
# "home/" stays below @DATA@, which exists only inside the volume: without it rsync stops with an error.
exec @LUKSHOOK@ @USER_CONFIG_FLAG@run @NAME@ -- rsync -aAXH --delete --numeric-ids /home/ @DATA@/home/
