#!/usr/bin/env bash
# chaos.sh: breaks one thing after the other while clients export, and checks that nothing is lost and nothing leaks.
# `scripts/chaos.sh --help` lists its settings: --for 10m, --hours N, --seed S, --faults NAME,..., --list.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
make build >/dev/null
exec scripts/servers.sh bin/chaos "$@"
