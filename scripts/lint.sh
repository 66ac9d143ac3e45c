#!/usr/bin/env bash
# lint.sh: golangci-lint over each module by itself, with .golangci.yml of the root.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

lint=$(scripts/tool.sh golangci-lint)
code=0
for module in proto pkg services tools/testreport tools/composecheck tools/k8scheck tools/monitoringcheck; do
	# A module that holds no package yet has nothing to lint, which golangci-lint takes for an error.
	if [ -z "$(GOWORK=off go -C "$module" list ./... 2>/dev/null)" ]; then
		continue
	fi
	(cd "$module" && GOWORK=off "$lint" run ./...) || {
		echo "lint: findings in $module" >&2
		code=1
	}
done
exit "$code"
