#!/usr/bin/env bash
# engine.sh COMMAND...: runs the command with a Docker engine, Compose and buildx, and exits with its code.
#
# An engine that responds is used as it is. Otherwise one is installed and started with its state in a temporary folder, and
# is stopped and removed when the command ends; that needs root. It does not change the firewall, so its containers reach
# each other and publish ports, but not the internet: build with --network host. It refuses to start beside another
# engine: the rules of that one drop packets between containers that it does not know. Plugins that are missing are built from the
# versions that tools/compose and tools/buildx pin, and only the command sees them.
set -euo pipefail

if [ $# = 0 ]; then
	echo "usage: scripts/engine.sh COMMAND..." >&2
	exit 2
fi
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
dir=$(mktemp -d "${TMPDIR:-/tmp}/sluice-engine.XXXXXX")
engine=

stop() {
	if [ -n "$engine" ]; then
		docker ps --quiet --all | xargs --no-run-if-empty docker rm --force --volumes >/dev/null
		docker network prune --force >/dev/null
		kill -TERM "$engine" 2>/dev/null || true
		wait "$engine" || true
	fi
	rm -rf "$dir"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

command -v docker >/dev/null || "$scripts/need.sh" docker "it runs containers" docker.io

if ! docker info >/dev/null 2>&1; then
	command -v dockerd >/dev/null || "$scripts/need.sh" dockerd "no Docker engine responds" docker.io
fi
if ! docker info >/dev/null 2>&1; then
	if [ "$(id -u)" != 0 ]; then
		echo "engine.sh: no Docker engine responds, and only root can start one" >&2
		exit 1
	fi
	if pidof dockerd >/dev/null; then
		echo "engine.sh: a dockerd runs, but does not respond (DOCKER_HOST=${DOCKER_HOST:-}); a second one cannot run" >&2
		exit 1
	fi
	export DOCKER_HOST=unix://$dir/docker.sock
	echo '{}' >"$dir/daemon.json" # not the settings of the machine, which may contradict these
	dockerd --config-file "$dir/daemon.json" --host "$DOCKER_HOST" --data-root "$dir/data" --exec-root "$dir/exec" \
		--pidfile "$dir/dockerd.pid" --iptables=false --ip-forward=false --bridge=none >"$dir/dockerd.log" 2>&1 &
	engine=$!
	deadline=$((SECONDS + 60))
	until docker info >/dev/null 2>&1; do
		if [ "$SECONDS" -ge "$deadline" ] || ! kill -0 "$engine" 2>/dev/null; then
			echo "engine.sh: dockerd did not start; its log:" >&2
			tail -n 20 "$dir/dockerd.log" >&2
			exit 1
		fi
		sleep 0.2
	done
fi

# plugin NAME: builds a plugin of the docker command unless it is installed.
plugin() {
	local program
	if docker "$1" version >/dev/null 2>&1; then
		return
	fi
	program=$("$scripts/tool.sh" "$1")
	if [ "${DOCKER_CONFIG:-}" != "$dir/config" ]; then
		mkdir -p "$dir/config"
		cp -r "${DOCKER_CONFIG:-$HOME/.docker}/." "$dir/config/" 2>/dev/null || true # credentials of registries
		export DOCKER_CONFIG=$dir/config
	fi
	mkdir -p "$DOCKER_CONFIG/cli-plugins"
	ln -sf "$program" "$DOCKER_CONFIG/cli-plugins/docker-$1"
}
plugin compose
plugin buildx

code=0
"$@" || code=$?
exit "$code"
