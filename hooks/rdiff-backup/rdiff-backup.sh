#!/bin/sh
# Save as /usr/local/sbin/rdiff-backup-@NAME@ (mode 0755) and use it wherever you would use rdiff-backup:
#   rdiff-backup-@NAME@ backup /home @DATA@/home; rdiff-backup-@NAME@ restore @DATA@/home /tmp/home
exec @LUKSHOOK@ @USER_CONFIG_FLAG@run @NAME@ -- rdiff-backup "$@"
