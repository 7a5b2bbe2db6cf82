#!/bin/sh
# Save as /usr/local/sbin/restic-@NAME@ (mode 0755) and use it wherever you would use restic:
#   restic-@NAME@ init; restic-@NAME@ backup /home; restic-@NAME@ forget --prune --keep-daily 7; restic-@NAME@ restore ...
export RESTIC_REPOSITORY=@DATA@/restic
exec @LUKSHOOK@ @USER_CONFIG_FLAG@run @NAME@ -- restic "$@"
