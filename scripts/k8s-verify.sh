#!/usr/bin/env bash
# k8s-verify.sh: checks k8s/ against a real kube-apiserver with a real etcd, with the definitions of KEDA and of Prometheus'
# operator in it, and against the services themselves. tools/k8scheck is what checks; TESTFLAGS adds flags of `go test`.
#
# kube-apiserver and etcd are built once from their modules and kept (scripts/tool.sh), which takes two cores about four
# minutes. Nothing listens but on loopback, and nothing is left behind.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export CGO_ENABLED=0 # all of it is pure Go, and a C compiler or none makes no difference

K8SCHECK_ETCD=$(scripts/tool.sh etcd)
K8SCHECK_APISERVER=$(scripts/tool.sh kube-apiserver)
export K8SCHECK_ETCD K8SCHECK_APISERVER

work=$(mktemp -d "${TMPDIR:-/tmp}/sluice-k8s.XXXXXX")
trap 'rm -rf "$work"' EXIT

# definitions MODULE FOLDER NAME...: adds files with definitions of a module that tools/MODULE pins.
definitions() {
	local module=$1 folder=$2 path name
	shift 2
	path=$(GOWORK=off go -C "tools/$module" mod edit -json | sed -n 's/.*"Path": "\(github.com\/[^"]*\)".*/\1/p' | tail -n 1)
	GOWORK=off go -C "tools/$module" mod download "$path"
	path=$(GOWORK=off go -C "tools/$module" list -m -f '{{.Dir}}' "$path")
	for name in "$@"; do
		K8SCHECK_CRDS+=" $path/$folder/$name.yaml"
	done
}
K8SCHECK_CRDS=''
definitions keda config/crd/bases keda.sh_scaledobjects keda.sh_triggerauthentications
definitions prometheus-operator example/prometheus-operator-crd monitoring.coreos.com_podmonitors \
	monitoring.coreos.com_servicemonitors monitoring.coreos.com_prometheusrules
export K8SCHECK_CRDS

export K8SCHECK_BIN=$work/bin
# As the Dockerfile builds them, so that one cache serves both.
GOWORK=off go -C services build -trimpath -o "$work/bin/" ./api ./auth ./worker ./scheduler ./sluice

# shellcheck disable=SC2086 # TESTFLAGS is a list of words
GOWORK=off go -C tools/k8scheck test -count=1 -timeout 10m ${TESTFLAGS:-} ./...
