#!/usr/bin/env bash
# test.sh [PACKAGE...]: runs the tests of the three modules (or of the packages named) under the race detector beside
# real servers. A failing test fails it, and so does a skipped one. TESTFLAGS adds flags of `go test`, such as
# -run=Seal.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

# -race needs cgo, and cgo needs a C compiler with its library's headers.
if ! printf '#include <stdlib.h>\nint main(void) { return 0; }\n' |
	"$(go env CC)" -x c -o /dev/null - >/dev/null 2>&1; then
	scripts/need.sh gcc "-race is built with it" gcc libc6-dev
fi
export CGO_ENABLED=1

# The operator's page is looked at with a real browser.
if ! command -v chromium chromium-browser google-chrome >/dev/null; then
	scripts/need.sh Chromium "the operator's page is tested in it" chromium
fi

if [ $# = 0 ]; then
	set -- ./proto/... ./pkg/... ./services/...
fi

GOWORK=off go -C tools/testreport test ./... # what judges the tests is tested first
report=$(mktemp "${TMPDIR:-/tmp}/sluice-testreport.XXXXXX")
trap 'rm -f "$report"' EXIT
GOWORK=off go -C tools/testreport build -o "$report" .

# shellcheck disable=SC2086 # TESTFLAGS is a list of words
scripts/servers.sh go test -race -shuffle=on -count=1 -timeout 15m -json ${TESTFLAGS:-} "$@" | "$report"
