#!/usr/bin/env bash
# bench.sh: measures Sluice and the ceiling of this machine, with its own Redis, MinIO and PostgreSQL. `scripts/bench.sh
# --help` lists its settings: --patients N (0.41 MB each), --rounds N, --only SECTION,..., --records N, --objects N,
# --json FILE, --profile FILE.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
make build >/dev/null
exec scripts/servers.sh bin/bench "$@"
