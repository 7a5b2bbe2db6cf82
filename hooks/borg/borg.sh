#!/bin/sh
# Save as /usr/local/sbin/borg-@NAME@ (mode 0755) and use it wherever you would use borg:
#   borg-@NAME@ init -e none; borg-@NAME@ create --stats ::home-{now} /home; borg-@NAME@ list
export BORG_REPO=@DATA@/borg
exec @LUKSHOOK@ @USER_CONFIG_FLAG@run @NAME@ -- borg "$@"
