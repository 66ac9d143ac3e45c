#!/usr/bin/env bash
# k8s-test.sh: tests the overlay production of k8s/ in a real cluster on this machine (scripts/cluster.sh), with the engine
# that `docker` reaches: engine.sh k8s-test.sh. It needs root. CHART=FILE draws a chart of the run. TESTFLAGS adds flags of
# `go test`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

scripts/base-images.sh
TAG=one BUILD_NETWORK=${BUILD_NETWORK:-host} GOPROXY=${GOPROXY:-$(go env GOPROXY)} scripts/images.sh
docker tag sluice:one sluice:two # an upgrade
mapfile -t stores < <(sed -nE 's|^ *image: (docker.io/library/)?([a-z]+:.*)|\2|p' k8s/components/stores/*.yaml)
make build >/dev/null

export SLUICE_CHART=${CHART:-}
# shellcheck disable=SC2016 # the shell beside the cluster expands it
scripts/cluster.sh bash -euo pipefail -c 'cluster-load "$@"
	go test -tags kubernetes -count=1 -v -timeout 60m ${TESTFLAGS:-} ./services/e2e/kubernetes' \
	k8s-test sluice:one sluice:two sluice-minio:one "${stores[@]}"
