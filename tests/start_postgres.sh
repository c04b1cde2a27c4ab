#!/usr/bin/env bash
# Starts Debian's PostgreSQL for the tests where none answers, and lets user postgres in from this machine.
set -euo pipefail
address=(-h 127.0.0.1 -U postgres)
if psql "${address[@]}" -d postgres -w -c 'SELECT 1' > /dev/null 2>&1; then
  psql "${address[@]}" -d postgres -w -Atc "SELECT 1 FROM pg_database WHERE datname = 'test'" | grep -q 1 ||
    createdb "${address[@]}" -w test
  exit 0
fi
root=()
[ "$(id -u)" = 0 ] || root=(sudo)
cluster=$(ls /etc/postgresql 2> /dev/null | sort -n | tail -1)
[ -n "$cluster" ] || { echo "PostgreSQL is not installed." >&2; exit 1; }
rules=/etc/postgresql/$cluster/main/pg_hba.conf
rule='host all postgres 127.0.0.1/32 trust'
"${root[@]}" grep -qxF "$rule" "$rules" || "${root[@]}" sed -i "1i $rule" "$rules"
"${root[@]}" pg_ctlcluster --skip-systemctl-redirect "$cluster" main restart
psql "${address[@]}" -d postgres -w -Atc "SELECT 1 FROM pg_database WHERE datname = 'test'" | grep -q 1 ||
  createdb "${address[@]}" -w test
