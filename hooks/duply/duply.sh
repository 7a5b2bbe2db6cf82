#!/bin/sh
# Save as /usr/local/sbin/duply-@NAME@ (mode 0755) and use it wherever you would use duply: duply-@NAME@ PROFILE backup
# In the conf of the profile:  TARGET='file://@DATA@/duply'
exec @LUKSHOOK@ @USER_CONFIG_FLAG@run @NAME@ -- duply "$@"
