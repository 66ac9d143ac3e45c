#!/usr/bin/env bash
# servers.sh COMMAND...: runs the command beside a Redis, a MinIO and a PostgreSQL of its own, and exits with its code.
#
# The servers listen on free ports of 127.0.0.1 and store their data in one temporary folder. They are stopped and the
# folder is removed when the command ends. SLUICE_TEST_REDIS, SLUICE_TEST_S3 and SLUICE_TEST_POSTGRES hold their
# addresses, SLUICE_TEST_POSTGRES_BIN the folder of PostgreSQL's programs. `scripts/servers.sh bash` starts a shell.
set -euo pipefail

if [ $# = 0 ]; then
	echo "usage: scripts/servers.sh COMMAND..." >&2
	exit 2
fi
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

command -v redis-server >/dev/null ||
	"$scripts/need.sh" redis-server "tests run against a real Redis" redis-server
minio=$("$scripts/tool.sh" minio)

# find_postgres sets postgres_bin to the folder of PostgreSQL's programs, version 14 or later: in PATH, or the newest in
# Debian's folders.
find_postgres() {
	local found version
	while IFS= read -r found; do
		if [ -x "$found/initdb" ] && [ -x "$found/pg_isready" ] && version=$("$found/postgres" --version); then
			version=${version#*) } # postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)
			if [ "${version%%[!0-9]*}" -ge 14 ]; then
				postgres_bin=$found
				return
			fi
		fi
	done < <(
		if found=$(command -v postgres); then
			dirname "$(realpath "$found")"
		fi
		printf '%s\n' /usr/lib/postgresql/*/bin | sort -Vr
	)
	return 1
}
if ! find_postgres; then
	"$scripts/need.sh" "PostgreSQL 14 or later" "tests run against a real one" postgresql
	if ! find_postgres; then
		echo "servers.sh: no PostgreSQL of version 14 or later in PATH or /usr/lib/postgresql" >&2
		exit 1
	fi
fi

dir=$(mktemp -d "${TMPDIR:-/tmp}/sluice-servers.XXXXXX")
mkdir "$dir/postgres"
as_postgres=()
if [ "$(id -u)" = 0 ]; then # PostgreSQL refuses to run as root
	account=postgres
	id "$account" >/dev/null 2>&1 || account=nobody
	as_postgres=(setpriv --reuid="$account" --regid="$(id -g "$account")" --clear-groups)
	chgrp "$(id -g "$account")" "$dir"
	chmod 710 "$dir"
	chown "$account:$(id -g "$account")" "$dir/postgres"
fi
redis_pid='' minio_pid='' postgres_pid='' command_pid=''

stop() {
	trap '' INT TERM HUP
	# Each process leads a process group (set -m), so its children are stopped, too.
	if [ -n "$command_pid" ]; then
		kill -TERM -- "-$command_pid" 2>/dev/null || true
		wait "$command_pid" 2>/dev/null || true
	fi
	stop_postgres
	for pid in $redis_pid $minio_pid; do
		kill -KILL -- "-$pid" 2>/dev/null || true # no data to keep
		wait "$pid" 2>/dev/null || true
	done
	rm -rf "$dir"
}

# stop_postgres stops PostgreSQL with an immediate shutdown. SIGKILL would leave its backends, which are not in its process
# group, running for a while, and a System V shared memory segment behind.
stop_postgres() {
	local deadline=$((SECONDS + 10))
	if [ -z "$postgres_pid" ]; then
		return
	fi
	kill -QUIT -- "-$postgres_pid" 2>/dev/null || true
	while kill -0 "$postgres_pid" 2>/dev/null && [ "$SECONDS" -lt "$deadline" ]; do
		sleep 0.02
	done
	kill -KILL -- "-$postgres_pid" 2>/dev/null || true
	wait "$postgres_pid" 2>/dev/null || true
}
trap stop EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
set -m # Ctrl-C reaches the command only; the servers are stopped after it

# free_port sets port to a free one, below the range of ephemeral ports.
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

# start NAME HEALTHY BEGIN: calls BEGIN with a free port and waits until HEALTHY succeeds. A server that exits (the port
# was taken meanwhile) is started again on another port.
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
	echo "servers.sh: $name did not start after $try tries; its log:" >&2
	tail -n 20 "$dir/$name.log" >&2
	exit 1
}

begin_redis() {
	# Each test takes its own database.
	redis-server --bind 127.0.0.1 --port "$port" --dir "$dir" --save "" --appendonly no \
		--maxmemory-policy noeviction --databases 4096 --daemonize no --supervised no \
		>"$dir/redis.log" 2>&1 </dev/null &
	pid=$! redis_pid=$!
}

healthy_redis() {
	grep -q 'Ready to accept connections' "$dir/redis.log"
}

begin_minio() {
	# Tests of server-side encryption use the key sluice-test.
	MINIO_ROOT_USER=$access MINIO_ROOT_PASSWORD=$secret MINIO_BROWSER=off MINIO_UPDATE=off \
		MINIO_KMS_SECRET_KEY="sluice-test:$kms" \
		"$minio" server --address "127.0.0.1:$port" --certs-dir "$dir/certs" "$dir/minio" \
		>"$dir/minio.log" 2>&1 </dev/null &
	pid=$! minio_pid=$!
}

healthy_minio() {
	local line
	# The probe "cluster" returns 200 when the server accepts writes.
	{
		exec 3<>"/dev/tcp/127.0.0.1/$port" &&
			printf 'GET /minio/health/cluster HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n' >&3 &&
			read -r -t 5 line <&3 && exec 3<&- 3>&-
	} 2>/dev/null || return 1
	[[ $line == HTTP/1.?' 200 '* ]]
}

# init_postgres creates the database cluster in the background; it takes as long as everything else together.
init_postgres() {
	local init=("$postgres_bin/initdb" -D data -U postgres -A scram-sha-256 --pwfile=password
		--encoding=UTF8 --locale=C --no-sync)
	printf '%s\n' "$secret" >"$dir/postgres/password"
	(cd "$dir/postgres" && exec "${as_postgres[@]}" "${init[@]}") >"$dir/postgres.log" 2>&1 </dev/null &
	postgres_pid=$!
}

begin_postgres() {
	local server=("$postgres_bin/postgres" -D data -h 127.0.0.1 -p "$port" -k '' -N 200 -B 128MB
		-c fsync=off -c synchronous_commit=off -c full_page_writes=off) # durability is not needed
	(cd "$dir/postgres" && exec "${as_postgres[@]}" "${server[@]}") >"$dir/postgres.log" 2>&1 </dev/null &
	pid=$! postgres_pid=$!
}

healthy_postgres() {
	"$postgres_bin/pg_isready" -q -d "host=127.0.0.1 port=$port user=postgres dbname=postgres sslmode=disable"
}

random() { od -An -N "$1" -tx1 /dev/urandom | tr -d ' \n'; }

access=$(random 8) secret=$(random 16) kms=$(head -c 32 /dev/urandom | base64)
init_postgres
start redis healthy_redis begin_redis
export SLUICE_TEST_REDIS=redis://127.0.0.1:$port
start minio healthy_minio begin_minio
export SLUICE_TEST_S3=http://$access:$secret@127.0.0.1:$port
if ! wait "$postgres_pid"; then
	echo "servers.sh: PostgreSQL's initdb failed; its log:" >&2
	tail -n 20 "$dir/postgres.log" >&2
	exit 1
fi
start postgres healthy_postgres begin_postgres
export SLUICE_TEST_POSTGRES=postgres://postgres:$secret@127.0.0.1:$port/postgres?sslmode=disable
export SLUICE_TEST_POSTGRES_BIN=$postgres_bin
export SLUICE_TEST_MINIO_BIN=$minio
echo "servers.sh: Redis, MinIO and PostgreSQL are up in $dir" >&2

code=0
if [ -t 0 ]; then
	"$@" || code=$? # in the foreground, so that the command can read from the terminal
else
	"$@" <&0 &
	command_pid=$!
	wait "$command_pid" || code=$?
	command_pid=''
fi
exit "$code"
