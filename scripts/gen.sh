#!/usr/bin/env bash
# gen.sh DIR: writes every generated file below DIR: the Go of proto/ (as proto/buf.gen.yaml says), and the PrometheusRule
# with the rules of k8s/monitoring/alerts.yaml. `make gen` calls it with the repository, `make verify` with a temporary
# folder.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

out=${1:?usage: scripts/gen.sh DIR}
mkdir -p "$out/proto" "$out/k8s/monitoring"
out=$(cd "$out" && pwd)
buf=$(scripts/tool.sh buf)
plugin=$(scripts/tool.sh protoc-gen-go)

# Prometheus reads a plain file of rules; its operator reads the same rules as `spec` of an object.
{
	echo '# Generated from alerts.yaml by `make gen`. Do not edit.'
	printf 'apiVersion: monitoring.coreos.com/v1\nkind: PrometheusRule\nmetadata:\n  name: sluice\nspec:\n'
	sed -n '/^groups:/,$s/^\(.\)/  \1/p' k8s/monitoring/alerts.yaml
} >"$out/k8s/monitoring/prometheusrule.yaml"

# buf finds a plugin by its plain name in PATH.
path=$(mktemp -d "${TMPDIR:-/tmp}/sluice-gen.XXXXXX")
trap 'rm -rf "$path"' EXIT
ln -s "$plugin" "$path/protoc-gen-go"
cd proto
PATH=$path:$PATH "$buf" generate --output "$out/proto"
