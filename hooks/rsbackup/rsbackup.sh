#!/bin/sh
# Save as /usr/local/sbin/rsbackup-@NAME@ (mode 0755) and use it wherever you would use rsbackup: rsbackup-@NAME@ --backup
# In /etc/rsbackup/config:  store @MOUNTPOINT@
exec @LUKSHOOK@ @USER_CONFIG_FLAG@run @NAME@ -- rsbackup "$@"
