# Two files in /etc/backup.d/ (mode 0600). Save this part as 10-lukshook.sh:
when = everyday at 01:00
@LUKSHOOK@ @USER_CONFIG_FLAG@before-backup @NAME@ || fatal "volume @NAME@ did not open"
# Save this part as 90-lukshook.sh; your own actions are 20 to 80, write below @DATA@, and have init = no:
when = everyday at 01:00
@LUKSHOOK@ @USER_CONFIG_FLAG@after-backup @NAME@ || error "volume @NAME@ did not close"
