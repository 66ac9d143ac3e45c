#!/usr/bin/env bash
# verify.sh: what has to hold of the tree besides its tests. Every check runs, then the failed ones are named. Checks
# of a module run with GOWORK=off: a module that leans on another's requirements through the workspace is broken for
# everybody outside it.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

modules=(proto pkg services)
lines_of_main=60

work=$(mktemp -d "${TMPDIR:-/tmp}/sluice-verify.XXXXXX")
trap 'rm -rf "$work"' EXIT
failed=()

# check NAME COMMAND...: runs it and prints a line, its notes, and on failure the first hundred lines of output.
check() {
	local name=$1 began=$SECONDS code
	shift
	set +e # not `if "$@"`, in which bash lets a function go on after a command of it failed
	(
		set -e
		"$@"
	) >"$work/log" 2>&1 </dev/null
	code=$?
	set -e
	if [ "$code" = 0 ]; then
		printf 'ok    %s (%d s)\n' "$name" "$((SECONDS - began))"
		grep '^note: ' "$work/log" | sed 's/^/      /' || true
	else
		printf 'FAIL  %s (%d s)\n' "$name" "$((SECONDS - began))"
		head -n 100 "$work/log" | sed 's/^/      /'
		if [ "$(wc -l <"$work/log")" -gt 100 ]; then
			echo "      ... $(($(wc -l <"$work/log") - 100)) more lines"
		fi
		failed+=("$name")
	fi
}

# sources prints the files of the tree: tracked ones, and new ones that are not ignored.
sources() {
	local file
	git ls-files --cached --others --exclude-standard -- "$@" | while IFS= read -r file; do
		if [ -f "$file" ]; then # a deleted file is listed until that is committed
			printf '%s\n' "$file"
		fi
	done
}

top_level() {
	local entry code=0
	while IFS= read -r entry; do
		case $entry in
		.* | services | pkg | proto | docker-compose.yml | k8s | scripts | go.work | go.work.sum) ;;
		Makefile | README.md | docs | tools) ;;
		*)
			echo "$entry: the top level is fixed; find it a place below"
			code=1
			;;
		esac
	done < <(sources | cut -d/ -f1 | sort -u)
	return "$code"
}

short_mains() {
	local file lines code=0
	while IFS= read -r file; do
		lines=$(wc -l <"$file")
		if [ "$lines" -gt "$lines_of_main" ]; then
			echo "$file: $lines lines, want at most $lines_of_main: wiring belongs beside it"
			code=1
		fi
	done < <(sources 'services/*main.go')
	return "$code"
}

formatted() {
	local unformatted
	unformatted=$(sources '*.go' | xargs gofmt -l)
	if [ -n "$unformatted" ]; then
		printf '%s\n' "$unformatted"
		echo "gofmt -w mends these"
		return 1
	fi
}

generated() {
	mkdir "$work/generated"
	scripts/gen.sh "$work/generated"
	# Both ways: a stale file, a missing one, and one that nothing generates (hand-written code) all show.
	diff -ru --exclude='*.proto' proto/sluice "$work/generated/sluice" || {
		echo "make gen, and commit what it writes"
		return 1
	}
}

buf_lint() {
	local buf
	buf=$(scripts/tool.sh buf)
	"$buf" lint proto
}

# proto_base prints the commit whose .proto files the present ones have to be compatible with: where this branch left
# origin/main, or, on main itself, the version before the last change.
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

buf_breaking() {
	local buf base
	buf=$(scripts/tool.sh buf)
	base=$(proto_base)
	if [ -z "$base" ] || [ -z "$(git ls-tree -r --name-only "$base" -- proto | grep '\.proto$')" ]; then
		echo "note: no earlier version of proto/ is known here: nothing can break yet"
		return
	fi
	mkdir "$work/before"
	git archive "$base" proto | tar -x -C "$work/before"
	"$buf" breaking proto --against "$work/before/proto"
	echo "note: compatible with $(git log -1 --format='%h (%s)' "$base")"
}

# vulnerabilities fails for a known one that a service can reach, in what pkg and proto or any library does for it. A
# machine that cannot reach the database is told so; SLUICE_VULNDB names another one, such as file:///srv/vulndb, which
# has to be there.
vulnerabilities() {
	local govulncheck about db=()
	govulncheck=$(scripts/tool.sh govulncheck)
	if [ -n "${SLUICE_VULNDB:-}" ]; then
		db=(-db "$SLUICE_VULNDB")
	fi
	about=$("$govulncheck" "${db[@]}" -version)
	if ! grep '^DB updated: ' <<<"$about"; then
		if [ -n "${SLUICE_VULNDB:-}" ]; then
			echo "SLUICE_VULNDB cannot be read"
			return 1
		fi
		echo "note: the database of known vulnerabilities, vuln.go.dev, cannot be reached: nothing was looked up"
		return
	fi
	GOWORK=off "$govulncheck" "${db[@]}" -C services ./...
}

# compose compares docker-compose.yml with the Dockerfile, the settings, the files that it mounts and what the services
# accept, and shows that each kind of mistake is found.
compose() {
	GOWORK=off go -C tools/composecheck vet ./...
	GOWORK=off go -C tools/composecheck mod tidy -diff
	GOWORK=off go -C tools/composecheck test -count=1 ./...
}

# monitoring checks dashboard, alerts and runbooks. Go's cache of results knows no files outside of the module.
monitoring() {
	GOWORK=off go -C tools/monitoringcheck vet ./...
	GOWORK=off go -C tools/monitoringcheck mod tidy -diff
	GOWORK=off go -C tools/monitoringcheck test -count=1 ./...
}

# kubernetes compares k8s/ with a real API server and with the services.
kubernetes() {
	GOWORK=off go -C tools/k8scheck vet ./...
	GOWORK=off go -C tools/k8scheck mod tidy -diff
	scripts/k8s-verify.sh
}

check "top level" top_level
check "short mains" short_mains
check "citations of docs/spec" scripts/citations.sh
check "gofmt" formatted
for module in "${modules[@]}"; do
	check "$module builds alone" env GOWORK=off go -C "$module" build ./...
	check "$module vet" env GOWORK=off go -C "$module" vet ./...
	check "$module tidy" env GOWORK=off go -C "$module" mod tidy -diff
done
# What is monitored, by Prometheus' own parser and engine. Its module is built once, in about a minute.
check "dashboard, alerts and runbooks" monitoring
check "generated code" generated
check "buf lint" buf_lint
check "buf breaking" buf_breaking
check "compose" compose
check "k8s" kubernetes
check "golangci-lint" scripts/lint.sh
check "known vulnerabilities" vulnerabilities

if [ ${#failed[@]} != 0 ]; then
	printf 'verify: %d failed: ' "${#failed[@]}"
	printf '%s; ' "${failed[@]}"
	echo
	exit 1
fi
echo "verify: all good"
