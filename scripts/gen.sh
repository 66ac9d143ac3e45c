#!/usr/bin/env bash
# gen.sh DIR: generates the Go of proto/'s .proto files below DIR, as proto/buf.gen.yaml says.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

out=$(cd "${1:?usage: scripts/gen.sh DIR}" && pwd)
buf=$(scripts/tool.sh buf)
plugin=$(scripts/tool.sh protoc-gen-go)

# buf looks a plugin up by its plain name.
path=$(mktemp -d "${TMPDIR:-/tmp}/sluice-gen.XXXXXX")
trap 'rm -rf "$path"' EXIT
ln -s "$plugin" "$path/protoc-gen-go"
cd proto
PATH=$path:$PATH "$buf" generate --output "$out"
