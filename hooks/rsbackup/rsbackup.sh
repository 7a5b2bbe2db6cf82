#!/bin/sh
# Save as /usr/local/sbin/rsbackup-@NAME@ (mode 0755) and use it wherever you would use rsbackup: rsbackup-@NAME@ --backup
# In /etc/rsbackup/config:  store @MOUNTPOINT@
# Once: @LUKSHOOK@ @USER_CONFIG_FLAG@run @NAME@ -- sh -c 'echo DEVICE >@MOUNTPOINT@/device-id; chmod 0700 @MOUNTPOINT@'
exec @LUKSHOOK@ @USER_CONFIG_FLAG@run @NAME@ -- rsbackup "$@"
