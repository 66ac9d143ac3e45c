#!/usr/bin/env bash
# tool.sh NAME: builds the tool that tools/NAME pins, once, and prints the path of its binary.
#
# The binary is kept in ${SLUICE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/sluice}/bin under the hash of everything that
# decides what it is: the tool's go.mod and go.sum and the Go that builds it. Two runs at once both build and the last
# one wins: each moves a finished binary into place, so nobody ever sees half of one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

name=${1:?usage: scripts/tool.sh NAME, a folder of tools/}
dir=tools/$name
if [ ! -f "$dir/go.mod" ]; then
	echo "tool.sh: there is no $dir/go.mod" >&2
	exit 1
fi

cache=${SLUICE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/sluice}/bin
key=$({ cat "$dir/go.mod" "$dir/go.sum"; go version; } | git hash-object --stdin | cut -c1-12)
bin=$cache/$name-$key
if [ -x "$bin" ]; then
	echo "$bin"
	exit 0
fi

mkdir -p "$cache"
half=$(mktemp "$cache/.$name.XXXXXX")
trap 'rm -f "$half"' EXIT
package=$(GOWORK=off go -C "$dir" list tool)
echo "tool.sh: building $package from source, as $dir/go.mod pins it; done once and kept in $cache" >&2
echo "tool.sh: on a machine that never built it this takes seconds (protoc-gen-go) to minutes (the others)" >&2
began=$SECONDS
GOWORK=off go -C "$dir" build -ldflags='-s -w' -o "$half" "$package" >&2
chmod 755 "$half"
mv "$half" "$bin"
echo "tool.sh: $name is built ($((SECONDS - began)) s)" >&2
echo "$bin"
