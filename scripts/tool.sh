#!/usr/bin/env bash
# tool.sh MODULE [PROGRAM]: prints the path of a program that tools/MODULE/go.mod pins with a `tool` line. PROGRAM is the
# last part of its import path, without a version or /cmd; the default is the name of the module. The first call builds it
# from source and keeps it.
#
# The cache is ${SLUICE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/sluice}/bin. File names contain a hash of go.mod, go.sum
# and the Go version. Concurrent calls are safe: a program is moved into place only when it is complete.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

module=${1:?usage: scripts/tool.sh MODULE [PROGRAM]}
dir=tools/$module
if [ ! -f "$dir/go.mod" ]; then
	echo "tool.sh: no such module: $dir" >&2
	exit 1
fi
program=${2:-$module}

ldflags='-s -w' flags=()
case $module in
# Checking rules needs no service discovery. Without it fewer packages are compiled.
promtool) flags+=(-tags remove_all_sd,enable_dns_sd) ;;
# Compose refuses to build with a buildx that does not know its version.
buildx)
	version=$(sed -n 's!.*docker/buildx \(v[^ ]*\).*!\1!p' "$dir/go.mod")
	ldflags+=" -X github.com/docker/buildx/version.Version=$version"
	;;
esac

cache=${SLUICE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/sluice}/bin
key=$({ cat "$dir/go.mod" "$dir/go.sum"; go version; echo -n "${ldflags#-s -w}"; } | git hash-object --stdin | cut -c1-12)
bin=$cache/$program-$key
if [ -x "$bin" ]; then
	echo "$bin"
	exit 0
fi

export CGO_ENABLED=0 # some run in images without a C library
mkdir -p "$cache"
package=$(GOWORK=off go -C "$dir" list tool | grep -E "(^|/)$program(/v[0-9]+)?(/cmd)?$" || true)
if [ -z "$package" ]; then
	echo "tool.sh: $dir/go.mod has no tool named $program" >&2
	exit 1
fi
new=$(mktemp "$cache/.$program.XXXXXX")
trap 'rm -f "$new"' EXIT
echo "tool.sh: building $program from source; done once and kept in $cache" >&2
began=$SECONDS
GOWORK=off go -C "$dir" build -ldflags="$ldflags" "${flags[@]}" -o "$new" "$package" >&2
mv "$new" "$bin"
echo "tool.sh: $program is built ($((SECONDS - began)) s)" >&2
echo "$bin"
