#!/bin/sh
# Not run by us: no registry has Kopia. These lines follow its documentation.
# Save as /usr/local/sbin/kopia-@NAME@ (mode 0755) and use it wherever you would use kopia:
#   kopia-@NAME@ repository create filesystem --path @DATA@/kopia; kopia-@NAME@ snapshot create /home
exec @LUKSHOOK@ @USER_CONFIG_FLAG@run @NAME@ -- kopia --config-file=/etc/kopia/@NAME@.config "$@"
