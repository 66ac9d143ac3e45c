#!/usr/bin/env bash
# Measures Sluice on this machine beside the ceiling that the machine sets, on a Redis, a MinIO and a PostgreSQL of its
# own. It installs and builds what it needs. `scripts/bench.sh --help` lists its settings: --patients N (0.41 MB each),
# --rounds N, --only SECTION,..., --json FILE, --profile FILE.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
make build >/dev/null
exec scripts/servers.sh bin/bench "$@"
