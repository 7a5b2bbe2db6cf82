#!/bin/sh
# Save as /usr/local/sbin/duplicity-@NAME@ (mode 0755) and use it wherever you would use duplicity:
#   duplicity-@NAME@ full /home file://@DATA@/duplicity; duplicity-@NAME@ restore file://@DATA@/duplicity /tmp/home
exec @LUKSHOOK@ @USER_CONFIG_FLAG@run @NAME@ -- duplicity "$@"
