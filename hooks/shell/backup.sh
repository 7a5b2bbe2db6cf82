#!/bin/sh
# A backup script of several steps. For a single command "lukshook run @NAME@ -- COMMAND" is enough.
set -e
failed=--failed
trap 'status=$?; @LUKSHOOK@ @USER_CONFIG_FLAG@after-backup @NAME@ --user-pid $$ $failed || exit $?; exit $status' EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
@LUKSHOOK@ @USER_CONFIG_FLAG@before-backup @NAME@ --user-pid $$
# Your own steps, writing below @DATA@; the first that fails ends the script.
rsync -a --delete /home/ @DATA@/home/
failed=
