#!/usr/bin/env bash
# need.sh WHAT WHY PACKAGE...: installs Debian packages with apt-get, as root or with a sudo that needs no password.
# Elsewhere it prints what is missing, why, and how to install it, and fails.
set -euo pipefail

what=${1:?usage: scripts/need.sh WHAT WHY PACKAGE...}
why=${2:?}
shift 2

as_root=()
if [ "$(id -u)" != 0 ]; then
	as_root=(sudo -n)
fi
if command -v apt-get >/dev/null && "${as_root[@]}" true 2>/dev/null; then
	echo "need.sh: $what is missing ($why): installing $*" >&2
	if [[ " $* " == *" postgresql"* ]]; then
		# By default the first installation of Debian's PostgreSQL creates a database cluster and starts it.
		clusters=/etc/postgresql-common/createcluster.d
		trap '"${as_root[@]}" rm -f "$clusters/sluice.conf"' EXIT
		"${as_root[@]}" mkdir -p "$clusters"
		"${as_root[@]}" tee "$clusters/sluice.conf" <<<'create_main_cluster = false' >/dev/null
	fi
	install=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -y)
	# The first try usually fails because the package index is missing or out of date.
	if "${install[@]}" install --no-install-recommends "$@" >/dev/null 2>&1 </dev/null; then
		exit 0
	fi
	"${install[@]}" update >&2 </dev/null
	"${install[@]}" install --no-install-recommends "$@" >&2 </dev/null
	exit
fi
echo "$what is needed ($why): apt-get install $*, or the equivalent of your system" >&2
exit 1
