#!/bin/sh
# Not run by us: no registry has autorestic. These lines follow its documentation. "lukshook run" needs none of its hooks.
# Save as /usr/local/sbin/autorestic-@NAME@ (mode 0755) and use it wherever you would use autorestic:
#   autorestic-@NAME@ check; autorestic-@NAME@ backup -a; autorestic-@NAME@ forget -a --prune
# In .autorestic.yml:  backends:  @NAME@:  type: local   path: @DATA@/restic
exec @LUKSHOOK@ @USER_CONFIG_FLAG@run @NAME@ -- autorestic "$@"
