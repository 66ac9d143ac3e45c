#!/usr/bin/env bash
# fuzz.sh: runs every fuzz target for FUZZTIME (60s) each. What breaks one is left in its testdata/fuzz: commit it.
# The seeds are run by `make test` as well. An input is made smaller for a second at most: by default that may take all of
# the time that there is.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

targets=$(git grep -Eo --untracked '^func Fuzz[A-Za-z0-9_]+' -- '*_test.go' || true)
if [ -z "$targets" ]; then
	echo "fuzz: there are no fuzz targets" >&2
	exit 1
fi
code=0
while IFS=: read -r file func; do
	name=${func#func }
	echo "== ./$(dirname "$file") $name"
	go test -run='^$' -fuzz="^$name\$" -fuzztime="${FUZZTIME:-60s}" -fuzzminimizetime=1s "./$(dirname "$file")" </dev/null || code=1
done <<<"$targets"
exit "$code"
