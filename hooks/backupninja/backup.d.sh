# Two files in /etc/backup.d/ (mode 0600). Save this part as 10-lukshook.sh:
when = everyday at 01:00
said=$(@LUKSHOOK@ @USER_CONFIG_FLAG@before-backup @NAME@ 2>&1) || halt "volume @NAME@ did not open:" $said
[ -z "$said" ] || warning $said
# Save this part as 90-lukshook.sh; your own actions are 20 to 80, write below @DATA@, and have init = no:
when = everyday at 01:00
[ "$fatals$errors" = 00 ] && failed= || failed=--failed
said=$(@LUKSHOOK@ @USER_CONFIG_FLAG@after-backup @NAME@ $failed 2>&1) || error "volume @NAME@ did not close well:" $said
[ -z "$said" ] || warning $said
