#!/usr/bin/env bash
# tool.sh MODULE [PROGRAM]: prints the path of a program (default: MODULE) that tools/MODULE/go.mod pins with a `tool`
# line. The first call builds all programs of that module from source and keeps them.
#
# The cache is ${SLUICE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/sluice}/bin. File names contain a hash of go.mod, go.sum
# and the Go version. Concurrent calls are safe: a program is moved into place only when it is complete.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

module=${1:?usage: scripts/tool.sh MODULE [PROGRAM]}
program=${2:-$module}
dir=tools/$module
if [ ! -f "$dir/go.mod" ]; then
	echo "tool.sh: no such module: $dir" >&2
	exit 1
fi

cache=${SLUICE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/sluice}/bin
key=$({ cat "$dir/go.mod" "$dir/go.sum"; go version; } | git hash-object --stdin | cut -c1-12)
bin=$cache/$program-$key
if [ -x "$bin" ]; then
	echo "$bin"
	exit 0
fi

flags=(-ldflags='-s -w')
case $module in
# Checking rules needs no service discovery. Without it fewer packages are compiled.
promtool) flags+=(-tags remove_all_sd) ;;
esac

mkdir -p "$cache"
new=$(mktemp -d "$cache/.$module.XXXXXX")
trap 'rm -rf "$new"' EXIT
echo "tool.sh: building $module from source; done once and kept in $cache" >&2
began=$SECONDS
GOWORK=off go -C "$dir" build "${flags[@]}" -o "$new/" tool >&2
for built in "$new"/*; do
	mv "$built" "$cache/${built##*/}-$key"
done
echo "tool.sh: $module is built ($((SECONDS - began)) s)" >&2
if [ ! -x "$bin" ]; then
	echo "tool.sh: $dir/go.mod has no tool named $program" >&2
	exit 1
fi
echo "$bin"
