#!/usr/bin/env bash
# lint.sh: runs golangci-lint over each module by itself, with .golangci.yml of the root.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

lint=$(scripts/tool.sh golangci-lint)
code=0
for module in proto pkg services; do
	(cd "$module" && GOWORK=off "$lint" run ./...) || {
		echo "lint: findings in $module" >&2
		code=1
	}
done
exit "$code"
