#!/usr/bin/env bash
# base-images.sh [IMAGE...]: gets images of other projects that docker-compose.yml and services/Dockerfile use. An image that
# the engine has is left alone; one that cannot be pulled is made from Debian's packages under the same name, for tests on
# machines without a registry: golang from the Go of this machine, redis and postgres with the user ids of the originals.
# prom/prometheus is made, too, if it is named.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

dir=$(mktemp -d "${TMPDIR:-/tmp}/sluice-base.XXXXXX")
trap 'rm -rf "$dir"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

mirror=() # the default of debootstrap
if [ -r /etc/apt/sources.list.d/debian.sources ]; then
	mapfile -t -n 1 mirror < <(sed -n 's/^URIs: *//p' /etc/apt/sources.list.d/debian.sources)
fi

# debian NAME [PACKAGE...]: creates a root with these packages below $dir.
debian() {
	local root=$dir/$1
	shift
	if [ ! -d "$dir/debian" ]; then
		command -v debootstrap >/dev/null || scripts/need.sh debootstrap "an image cannot be pulled, so it is made" debootstrap
		debootstrap --variant=minbase bookworm "$dir/debian" "${mirror[@]}" >"$dir/log" 2>&1 || {
			tail -n 20 "$dir/log" >&2
			exit 1
		}
		printf '#!/bin/sh\nexit 101\n' >"$dir/debian/usr/sbin/policy-rc.d" # packages start no server
		chmod 755 "$dir/debian/usr/sbin/policy-rc.d"
	fi
	cp -a "$dir/debian" "$root"
	cp /etc/resolv.conf "$root/etc/resolv.conf"
	if [ $# -gt 0 ]; then
		chroot "$root" env DEBIAN_FRONTEND=noninteractive apt-get -qq -y install --no-install-recommends "$@" >"$dir/log" 2>&1 || {
			tail -n 20 "$dir/log" >&2
			exit 1
		}
	fi
	rm -rf "$root"/var/cache/apt/* "$root"/var/lib/apt/lists/*
}

# put ROOT IMAGE CHANGE...: imports a root as an image.
put() {
	local root=$dir/$1 image=$2 changes=() change
	shift 2
	for change in "$@"; do changes+=(--change "$change"); done
	tar -C "$root" -c . | docker import "${changes[@]}" - "$image" >/dev/null
	rm -rf "$root"
}

make_golang() {
	debian golang ca-certificates
	mkdir -p "$dir/golang/etc/ssl/certs"
	cp -L /etc/ssl/certs/ca-certificates.crt "$dir/golang/etc/ssl/certs/" # the authority of a mirror may only be known here
	cp -a "$(go env GOROOT)" "$dir/golang/usr/local/go"
	put golang "$1" "ENV PATH=/usr/local/go/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin" \
		"ENV GOTOOLCHAIN=local GOPATH=/go"
}

make_redis() {
	debian redis redis-server
	chroot "$dir/redis" sh -c 'groupmod --gid 1000 redis && usermod --uid 999 --gid 1000 redis'
	install -d -o 999 -g 1000 "$dir/redis/data"
	put redis "$1" "VOLUME /data" "WORKDIR /data" 'CMD ["redis-server"]'
}

# The same variables and paths as in the original, as far as docker-compose.yml and k8s/overlays/dev use them.
make_postgres() {
	debian postgres postgresql
	chroot "$dir/postgres" sh -c '
		groupmod --gid 999 postgres && usermod --uid 999 --gid 999 postgres
		ln -s /usr/lib/postgresql/*/bin/* /usr/local/bin/'
	rm -rf "$dir/postgres/var/lib/postgresql" "$dir/postgres/etc/postgresql"
	install -d -o 999 -g 999 -m 700 "$dir/postgres/var/lib/postgresql/data"
	install -d -o 999 -g 999 -m 3777 "$dir/postgres/run/postgresql"
	install -m 755 /dev/stdin "$dir/postgres/usr/local/bin/docker-entrypoint.sh" <<-'EOF'
		#!/bin/bash
		set -euo pipefail
		if [ ! -s "$PGDATA/PG_VERSION" ]; then
			eval "args=(${POSTGRES_INITDB_ARGS:-})"
			initdb --username "$POSTGRES_USER" --pwfile <(cat "$POSTGRES_PASSWORD_FILE") "${args[@]}" "$PGDATA"
			echo 'host all all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
			pg_ctl -D "$PGDATA" -o "-c listen_addresses=''" -w start
			PGPASSWORD=$(cat "$POSTGRES_PASSWORD_FILE") createdb --username "$POSTGRES_USER" "$POSTGRES_DB"
			pg_ctl -D "$PGDATA" -m fast -w stop
		fi
		exec "$@" -c listen_addresses='*'
	EOF
	put postgres "$1" "ENV PGDATA=/var/lib/postgresql/data" "VOLUME /var/lib/postgresql/data" \
		'ENTRYPOINT ["docker-entrypoint.sh"]' 'CMD ["postgres"]'
}

# The module of Prometheus holds no built front end; the API works without it. The version is that of tools/promtool.
make_prometheus() {
	local program
	program=$(CGO_ENABLED=0 scripts/tool.sh promtool prometheus)
	debian prometheus wget
	install -m 755 "$program" "$dir/prometheus/bin/prometheus"
	install -d -o 65534 -g 65534 "$dir/prometheus/prometheus"
	put prometheus "$1" "VOLUME /prometheus" "WORKDIR /prometheus" 'ENTRYPOINT ["/bin/prometheus"]'
}

images=("$@")
if [ $# = 0 ]; then
	mapfile -t images < <(
		sed -n 's/^FROM \(golang:[^ ]*\).*/\1/p' services/Dockerfile
		sed -nE 's/^ *image: ((redis|postgres):.*)/\1/p' docker-compose.yml
	)
fi
for image in "${images[@]}"; do
	if docker image inspect "$image" >/dev/null 2>&1 || docker pull --quiet "$image" 2>/dev/null; then
		continue
	fi
	name=${image%%:*}
	name=${name##*/}
	echo "base-images.sh: $image cannot be pulled: making it" >&2
	began=$SECONDS
	"make_$name" "$image"
	echo "base-images.sh: $image is made ($((SECONDS - began)) s)" >&2
done
