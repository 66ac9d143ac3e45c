#!/usr/bin/env bash
# verify.sh: the checks of the repository other than its tests. All checks run, several at once, and the failed ones are
# listed at the end. Checks of a module run with GOWORK=off: a module that only builds inside the workspace is broken for
# everybody outside it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

work=$(mktemp -d "${TMPDIR:-/tmp}/sluice-verify.XXXXXX")
mkdir "$work/failed"
set -m # each check is a process group, so that an interrupted run stops what it started
stop() {
	local pid
	for pid in $(jobs -p); do
		kill -TERM -- "-$pid" 2>/dev/null || true
	done
	wait
	rm -rf "$work"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# check NAME COMMAND...: runs it in the background and prints one line, its notes, and on failure its output.
check() {
	run "$@" &
}
run() {
	local name=$1 log code began=$SECONDS
	log=$(mktemp "$work/log.XXXXXX")
	shift
	set +e # in `if "$@"` bash would continue a function after a failed command
	(
		set -e
		"$@"
	) >"$log" 2>&1 </dev/null
	code=$?
	set -e
	if [ "$code" = 0 ]; then
		echo "$(
			echo "ok    $name ($((SECONDS - began)) s)"
			sed -n 's/^note: /      &/p' "$log"
		)"
	else
		touch "$work/failed/$name"
		echo "$(
			echo "FAIL  $name ($((SECONDS - began)) s)"
			tail -n 100 "$log" | sed 's/^/      /'
		)"
	fi
}

# alone MODULE: the module builds without the workspace, and its go.mod is tidy.
alone() {
	GOWORK=off go -C "$1" build ./...
	GOWORK=off go -C "$1" mod tidy -diff
}

formatted() {
	local unformatted
	unformatted=$(git ls-files --cached --others --exclude-standard --deduplicate '*.go' |
		while IFS= read -r file; do [ ! -f "$file" ] || echo "$file"; done | xargs gofmt -l)
	if [ -n "$unformatted" ]; then
		printf '%s\n' "$unformatted"
		echo "run gofmt -w on these files"
		return 1
	fi
}

# generated compares the committed generated files with new ones.
generated() {
	scripts/gen.sh "$work/generated"
	# A recursive diff also shows a missing file, and a file in proto/sluice that nothing generates.
	if ! diff -ru --exclude='*.proto' proto/sluice "$work/generated/proto/sluice" ||
		! diff -u k8s/monitoring/prometheusrule.yaml "$work/generated/k8s/monitoring/prometheusrule.yaml"; then
		echo "run make gen and commit the result"
		return 1
	fi
}

# proto_base prints the commit with which the .proto files must be compatible: the merge base with origin/main, or, on main
# itself, the version before the last change.
proto_base() {
	local base changed
	base=$(git merge-base HEAD origin/main 2>/dev/null || true)
	if [ -n "$base" ] && [ "$base" != "$(git rev-parse HEAD)" ]; then
		echo "$base"
	elif [ -n "$(git status --porcelain -- 'proto/*.proto')" ]; then
		git rev-parse HEAD
	else
		changed=$(git log -1 --format=%H -- 'proto/*.proto')
		git rev-parse --verify --quiet "${changed:-HEAD}~1" || true
	fi
}

protobuf() {
	local buf base
	generated
	buf=$(scripts/tool.sh buf)
	"$buf" lint proto
	base=$(proto_base)
	if [ -z "$base" ] || [ -z "$(git ls-tree -r --name-only "$base" -- proto | grep '\.proto$')" ]; then
		echo "note: no earlier version of proto/ is known: nothing to compare with"
		return
	fi
	mkdir "$work/before"
	git archive "$base" proto | tar -x -C "$work/before"
	"$buf" breaking proto --against "$work/before/proto"
	echo "note: compatible with $(git log -1 --format='%h (%s)' "$base")"
}

# alerts checks the alert rules and runs their tests. Every alert needs a test in which it fires.
alerts() {
	local promtool alert
	promtool=$(scripts/tool.sh promtool)
	"$promtool" check rules --lint=all --lint-fatal k8s/monitoring/alerts.yaml
	"$promtool" test rules k8s/monitoring/alerts_test.yaml
	while IFS= read -r alert; do
		if ! grep -q "name: \"$alert fires" k8s/monitoring/alerts_test.yaml; then
			echo "alerts_test.yaml has no test in which $alert fires"
			return 1
		fi
	done < <(sed -n 's/^ *- alert: //p' k8s/monitoring/alerts.yaml)
}

# vulnerabilities fails for a known vulnerability that a service can reach. It uses the database that SLUICE_VULNDB names
# (such as file:///srv/vulndb), by default the public one, or, if that is unreachable, an archived copy beside the
# checkout.
vulnerabilities() {
	local govulncheck db=() archive
	govulncheck=$(scripts/tool.sh govulncheck)
	if [ -n "${SLUICE_VULNDB:-}" ]; then
		db=(-db "$SLUICE_VULNDB")
	elif ! "$govulncheck" -version | grep -q '^DB updated: '; then
		archive=$(compgen -G '../shared/data/vulndb-*.tar.gz' | sort | tail -n 1 || true)
		if [ -z "$archive" ]; then
			echo "note: the vulnerability database, vuln.go.dev, cannot be reached: nothing was checked"
			return
		fi
		echo "note: vuln.go.dev cannot be reached: checked with ${archive##*/}"
		mkdir "$work/vulndb"
		tar -xzf "$archive" -C "$work/vulndb" --strip-components=1
		db=(-db "file://$work/vulndb")
	fi
	"$govulncheck" "${db[@]}" -version | grep '^DB updated: '
	GOWORK=off "$govulncheck" "${db[@]}" -C services ./...
}

# The slowest start first: it compiles kube-apiserver, etcd and kubectl when they are not cached.
check "k8s" scripts/k8s-verify.sh
check "golangci-lint" scripts/lint.sh
check "known vulnerabilities" vulnerabilities
check "alert rules" alerts
for module in proto pkg services; do
	check "$module builds alone" alone "$module"
done
check "generated code and protobuf" protobuf
check "citations of docs/spec" scripts/citations.sh
check "gofmt" formatted
wait

if [ -n "$(ls "$work/failed")" ]; then
	echo "verify: failed: $(ls "$work/failed" | paste -sd ';' | sed 's/;/; /g')"
	exit 1
fi
echo "verify: all good"
