#!/usr/bin/env bash
# fuzz.sh: runs every fuzz target for FUZZTIME (60s) each. Failing inputs are stored in testdata/fuzz: commit them. `make
# test` runs the seeds. Minimizing is limited to a second, because it may use the whole time otherwise.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

targets=$(git grep -Eo --untracked '^func Fuzz[A-Za-z0-9_]+' -- '*_test.go' || true)
if [ -z "$targets" ]; then
	echo "fuzz: no fuzz targets found" >&2
	exit 1
fi
code=0
while IFS=: read -r file func; do
	name=${func#func }
	echo "== ./$(dirname "$file") $name"
	go test -run='^$' -fuzz="^$name\$" -fuzztime="${FUZZTIME:-60s}" -fuzzminimizetime=1s "./$(dirname "$file")" </dev/null || code=1
done <<<"$targets"
exit "$code"
