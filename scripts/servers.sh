#!/usr/bin/env bash
# servers.sh COMMAND...: runs the command beside a real Redis and a real MinIO of its own.
#
# Both listen on free ports of 127.0.0.1, keep what they hold in one temporary folder, and are stopped and removed
# with it when the command ends, however it ends. The command finds them in SLUICE_TEST_REDIS and SLUICE_TEST_S3; its
# exit code is this script's. `scripts/servers.sh bash` is a shell with servers.
set -euo pipefail

if [ $# = 0 ]; then
	echo "usage: scripts/servers.sh COMMAND..." >&2
	exit 2
fi
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

command -v redis-server >/dev/null ||
	"$scripts/need.sh" redis-server "tests run against a real Redis" redis-server
minio=$("$scripts/tool.sh" minio)

dir=$(mktemp -d "${TMPDIR:-/tmp}/sluice-servers.XXXXXX")
redis_pid='' minio_pid='' command_pid=''

stop() {
	trap '' INT TERM HUP
	# Each is the leader of its own process group (set -m), so that what it started goes with it.
	if [ -n "$command_pid" ]; then
		kill -TERM -- "-$command_pid" 2>/dev/null || true
		wait "$command_pid" 2>/dev/null || true
	fi
	for pid in $redis_pid $minio_pid; do
		kill -KILL -- "-$pid" 2>/dev/null || true # nothing in them is worth a farewell
		wait "$pid" 2>/dev/null || true
	done
	rm -rf "$dir"
}
trap stop EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
set -m # a Ctrl-C goes to the command; the servers outlive it and are stopped last

# free_port sets port to one that nobody listens on, below the range that the system hands out by itself.
free_port() {
	local tries
	for tries in {1..100}; do
		port=$((20000 + RANDOM % 12000))
		if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
			return
		fi
	done
	echo "servers.sh: no free port after $tries tries" >&2
	exit 1
}

# start NAME HEALTHY BEGIN: calls BEGIN with a free port and waits until HEALTHY says that it serves. A server that
# ends by itself (the port was taken meanwhile) is begun again on another one.
start() {
	local name=$1 healthy=$2 begin=$3 try deadline
	for try in 1 2 3; do
		free_port
		: >"$dir/$name.log"
		"$begin"
		deadline=$((SECONDS + 60))
		while kill -0 "$pid" 2>/dev/null && [ "$SECONDS" -lt "$deadline" ]; do
			if "$healthy" && kill -0 "$pid" 2>/dev/null; then
				return
			fi
			sleep 0.05
		done
		kill -KILL -- "-$pid" 2>/dev/null || true
		wait "$pid" 2>/dev/null || true
	done
	echo "servers.sh: $name did not come up after $try tries; it said:" >&2
	tail -n 20 "$dir/$name.log" >&2
	exit 1
}

begin_redis() {
	# 4096 databases: each test takes one of its own.
	redis-server --bind 127.0.0.1 --port "$port" --dir "$dir" --save "" --appendonly no \
		--maxmemory-policy noeviction --databases 4096 --daemonize no --supervised no \
		>"$dir/redis.log" 2>&1 </dev/null &
	pid=$! redis_pid=$!
}

healthy_redis() {
	grep -q 'Ready to accept connections' "$dir/redis.log"
}

begin_minio() {
	MINIO_ROOT_USER=$access MINIO_ROOT_PASSWORD=$secret MINIO_BROWSER=off MINIO_UPDATE=off \
		"$minio" server --address "127.0.0.1:$port" --certs-dir "$dir/certs" "$dir/minio" \
		>"$dir/minio.log" 2>&1 </dev/null &
	pid=$! minio_pid=$!
}

healthy_minio() {
	local line
	# "cluster" is the probe that answers 200 only when writes are taken.
	{
		exec 3<>"/dev/tcp/127.0.0.1/$port" &&
			printf 'GET /minio/health/cluster HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n' >&3 &&
			read -r -t 5 line <&3 && exec 3<&- 3>&-
	} 2>/dev/null || return 1
	[[ $line == HTTP/1.?' 200 '* ]]
}

random() { od -An -N "$1" -tx1 /dev/urandom | tr -d ' \n'; }

access=$(random 8) secret=$(random 16)
start redis healthy_redis begin_redis
export SLUICE_TEST_REDIS=redis://127.0.0.1:$port
start minio healthy_minio begin_minio
export SLUICE_TEST_S3=http://$access:$secret@127.0.0.1:$port
echo "servers.sh: Redis and MinIO are up in $dir" >&2

code=0
if [ -t 0 ]; then
	"$@" || code=$? # at a terminal: in the foreground, so that it may read what is typed
else
	"$@" <&0 &
	command_pid=$!
	wait "$command_pid" || code=$?
	command_pid=''
fi
exit "$code"
