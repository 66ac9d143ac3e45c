#!/usr/bin/env bash
# containers-test.sh: tests docker-compose.yml with the engine that `docker` reaches: scripts/engine.sh
# scripts/containers-test.sh. Images that are missing and cannot be pulled are made. BUILD_NETWORK is the network of builds.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

began=$SECONDS
prometheus=$(sed -nE 's!^ *image: (prom/prometheus:.*)!\1!p' docker-compose.yml scripts/compose/*)
scripts/base-images.sh
scripts/base-images.sh "$prometheus"
echo "base images: $((SECONDS - began)) s"

export BUILD_NETWORK=${BUILD_NETWORK:-host} # its DNS works where that of a bridge does not
export GOPROXY=${GOPROXY:-$(go env GOPROXY)}
GOFLAGS=-buildvcs=false go test -tags containers -count=1 -timeout 60m -v ./services/e2e/containers
