#!/bin/sh
# Not run by us: no registry has Proxmox Backup. These lines follow its documentation.
# Save as /usr/local/sbin/proxmox-backup-@NAME@ (mode 0755) on the server; its datastore "@NAME@" is @DATA@/pbs:
#   proxmox-backup-@NAME@ proxmox-backup-client backup home.pxar:/home --repository root@pam@localhost:@NAME@
# Once: @LUKSHOOK@ @USER_CONFIG_FLAG@run @NAME@ -- proxmox-backup-manager datastore create @NAME@ @DATA@/pbs
[ "$OPENED" ] || OPENED=yes exec @LUKSHOOK@ @USER_CONFIG_FLAG@run @NAME@ -- "$0" "$@"
trap 'proxmox-backup-manager datastore update @NAME@ --maintenance-mode offline' EXIT
proxmox-backup-manager datastore update @NAME@ --delete maintenance-mode && "$@"
