#!/usr/bin/env bash
# Measures an export on this machine beside the ceiling that the machine sets, on a Redis and a MinIO of its own.
# Usage: scripts/bench.sh [--patients N] [--workers N] [--concurrency N] [--json FILE]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
make build >/dev/null
exec scripts/servers.sh bin/bench "$@"
