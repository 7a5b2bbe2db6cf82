#!/bin/sh
# Save as /usr/local/sbin/btrbk-@NAME@ (mode 0755) and use it wherever you would use btrbk: btrbk-@NAME@ run
# In btrbk.conf:  target raw @DATA@/btrbk    or, in a volume with filesystem = "btrfs":  target @DATA@/btrbk
# Once: @LUKSHOOK@ @USER_CONFIG_FLAG@run @NAME@ -- mkdir @DATA@/btrbk
exec @LUKSHOOK@ @USER_CONFIG_FLAG@run @NAME@ -- btrbk "$@"
