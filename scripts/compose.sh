#!/usr/bin/env bash
# compose.sh ARGUMENTS...: docker compose on docker-compose.yml, or a clear word about what is missing.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

missing() {
	echo "$1 (or use \`make run\`, which needs no containers)" >&2
	exit 1
}

if [[ ! -f docker-compose.yml ]]; then
	missing "docker-compose.yml is not written yet"
fi
if ! command -v docker >/dev/null; then
	missing "docker is not installed: see https://docs.docker.com/engine/install/"
fi
if ! docker compose version >/dev/null 2>&1; then
	missing "docker has no compose plugin: see https://docs.docker.com/compose/install/"
fi
if ! docker info >/dev/null 2>&1; then
	missing "the docker daemon does not answer: start it"
fi
exec docker compose --file docker-compose.yml "$@"
