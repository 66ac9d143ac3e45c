#!/usr/bin/env bash
# test.sh [PACKAGE...]: runs the tests of the three modules, or of the named packages, under the race detector, beside
# real servers. A skipped test fails the run. TESTFLAGS adds flags of `go test`, such as -run=Seal, or -tags=long for the
# tests that take minutes.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# -race needs cgo, and cgo needs a C compiler with the headers of libc.
if ! printf '#include <stdlib.h>\nint main(void) { return 0; }\n' |
	"$(go env CC)" -x c -o /dev/null - >/dev/null 2>&1; then
	scripts/need.sh gcc "-race is built with it" gcc libc6-dev
fi
export CGO_ENABLED=1

if [[ ${TESTFLAGS:-} == *-tags=long* ]] && ! command -v chromium chromium-browser google-chrome >/dev/null; then
	scripts/need.sh Chromium "the admin page is tested in it" chromium
fi

if [ $# = 0 ]; then
	set -- ./proto/... ./pkg/... ./services/...
fi

gotestsum=$(scripts/tool.sh gotestsum)
events=$(mktemp "${TMPDIR:-/tmp}/sluice-test.XXXXXX")
trap 'rm -f "$events"' EXIT

code=0
# Parallel tests mostly wait for servers, so more of them run at once than there are CPUs. make verify runs vet.
# shellcheck disable=SC2086 # TESTFLAGS is a list of words
scripts/servers.sh "$gotestsum" --format pkgname-and-test-fails --hide-summary=output --jsonfile "$events" -- \
	-race -vet=off -shuffle=on -count=1 -parallel 8 -timeout 20m ${TESTFLAGS:-} "$@" || code=$?

# count ACTION: the number of tests that ended so. Events of packages have no "Test".
count() { grep -c "^{.*\"Action\":\"$1\".*\"Test\":\"" "$events" || true; }
passed=$(count pass) failed=$(count fail) skipped=$(count skip)
if [ "$code" != 0 ] && [ "$failed" = 0 ]; then
	failed=1 # a package that did not build, or whose process died
fi
if [ "$skipped" != 0 ]; then
	echo "skipped tests fail the run:"
	sed -n 's/^{.*"Action":"skip","Package":"\([^"]*\)","Test":"\([^"]*\)".*/  \1 \2/p' "$events"
	code=1
fi
if [ "$passed" = 0 ]; then
	echo "no test passed"
	code=1
fi
# CI reads this line; it is the last one.
echo "$passed passed, $failed failed, $skipped skipped"
exit "$code"
