#!/usr/bin/env bash
# compose.sh up|down|prepare|keys: the whole system in containers, by docker-compose.yml.
#
#   up       creates missing files (.env, secrets, a certificate), builds, starts and waits, loads sample data, registers
#            a demo client and prints how to export. It may run again after a change. PATIENTS is the size of the sample.
#   down     removes the containers, their volumes and the secrets.
#   prepare  creates .env and the secrets; keys creates the certificate and the key of the demo client, in a container.
#            After both, `docker compose` works by hand.
#
# For a second system beside the first, set COMPOSE_PROJECT_NAME, other ports, and SLUICE_COMPOSE_STATE: the folder of the
# secrets, and of .env, instead of .compose.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

state=.compose settings=.env
if [ -n "${SLUICE_COMPOSE_STATE:-}" ]; then
	mkdir -p -m 700 "$SLUICE_COMPOSE_STATE"
	SLUICE_COMPOSE_STATE=$(cd "$SLUICE_COMPOSE_STATE" && pwd) # included files of Compose have another folder
	export SLUICE_COMPOSE_STATE
	state=$SLUICE_COMPOSE_STATE settings=$SLUICE_COMPOSE_STATE/.env
fi
client=demo group=all
changed= # a file that api, auth or Keycloak reads at its start

compose() { docker compose --env-file "$settings" --file docker-compose.yml "$@"; }

need_docker() {
	if ! docker compose version >/dev/null 2>&1 || ! docker info >/dev/null; then
		echo "compose.sh: this needs a Docker engine that responds, with Compose (https://docs.docker.com/engine/install/);" \
			"\`make run\` needs no containers" >&2
		exit 1
	fi
}

random() { od -An -N "$1" -tx1 /dev/urandom | tr -d ' \n'; }

# write FILE: writes standard input to a file, atomically, unless that is its content. Containers run as other accounts and
# get these files with their mode, so all users may read them; the mode of their folder protects them.
write() {
	cat >"$state/.new"
	if ! cmp -s "$state/.new" "$state/$1"; then
		chmod 444 "$state/.new"
		mv -f "$state/.new" "$state/$1"
		changed="$changed $1"
	fi
}

# once FILE: the same, unless the file exists.
once() { [ -e "$state/$1" ] || write "$1"; }

# setting NAME: the value in the environment, or in .env, or the default, as in docker compose.
setting() {
	if [ -n "${!1+set}" ]; then
		echo "${!1}"
	else
		sed -n "s/^$1=//p" .env.example "$settings" | tail -n 1
	fi
}

profile_is_on() { [[ ",$(setting COMPOSE_PROFILES)," == *",$1,"* ]]; }

host() { setting PUBLIC_HOST | sed 's/^$/localhost/'; }
api_url() { echo "https://$(host):$(setting API_PORT)/fhir"; }
auth_url() { echo "https://$(host):$(setting AUTH_PORT)/auth"; }
keycloak_url() { echo "https://$(host):$(setting KEYCLOAK_PORT)/realms/health"; }

prepare() {
	mkdir -p -m 700 "$state" "$state/client"
	chmod 700 "$state"
	if [ ! -e "$settings" ]; then
		cp .env.example "$settings"
		echo "compose.sh: created $settings from .env.example" >&2
	fi
	local name
	for name in redis_password postgres_password s3_secret_key auth_key audit_key grafana_password keycloak_password; do
		once "$name" < <(random 32)
	done
	once envelope_keys < <(echo "first:$(head -c 32 /dev/urandom | base64 | tr -d '\n')")
	write redis_conf <<<"requirepass $(<"$state/redis_password")"
	write redis_url <<<"redis://default:$(<"$state/redis_password")@redis:6379/0"
	write postgres_url <<<"postgres://sluice:$(<"$state/postgres_password")@postgres:5432/sluice?sslmode=disable"
	write issuers.yaml < <(issuers)
}

# issuers prints the file of docs/access.md. Clients use the published port of the token service, the API uses its name.
issuers() {
	cat <<-EOF
		issuers:
		  - name: $(auth_url)
		    audiences: ["$(api_url)"]
		    jwks_url: https://auth:8081/auth/jwks
		    algorithms: [ES256]
	EOF
	if profile_is_on external-issuer; then
		cat <<-EOF
			  - name: $(keycloak_url)
			    audiences: ["$(api_url)"]
			    jwks_url: https://keycloak:8443/realms/health/protocol/openid-connect/certs
			    algorithms: [RS256]
			    subject_claim: azp
			    required_claims: {typ: Bearer}
		EOF
	fi
}

# The realm has the demo client with the same key, so it can export with tokens of either issuer.
keycloak_realm() {
	local realm keys
	realm=$(sed "s!@AUDIENCE@!$(api_url)!; s!@CLIENT@!$client!" scripts/compose/keycloak-realm.json)
	keys=$(tr -d '\n' <"$state/client/$client.jwks.json" | sed 's/\\/\\\\/g; s/"/\\"/g') # a JSON string
	printf '%s\n' "${realm//@KEYS@/"$keys"}"
}

# run FLAGS... sluice ARGUMENTS...: runs the command line in a container.
run() {
	local terminal=()
	[ -t 0 ] && [ -t 1 ] || terminal=(--no-TTY)
	compose run --rm --no-deps "${terminal[@]}" "$@"
}

# keys creates the certificate and the demo client's key in the folder of the secrets, with our account, unless they exist.
keys() {
	local names own=(--user "$(id -u):$(id -g)" --volume "$(cd "$state" && pwd):/keys" sluice)
	names="localhost,127.0.0.1,auth,api,keycloak,$(host)"
	if [ ! -e "$state/tls.key" ] || [ "$names" != "$(cat "$state/tls.names" 2>/dev/null)" ]; then
		rm -f "$state/ca.pem" "$state/tls.pem" "$state/tls.key"
		run "${own[@]}" admin certificate --out /keys --name "$names"
		chmod 444 "$state/ca.pem" "$state/tls.pem" "$state/tls.key"
		write tls.names <<<"$names"
		changed="$changed tls.pem"
	fi
	if [ ! -e "$state/client/$client.jwks.json" ]; then
		rm -f "$state/client/$client.key.json"
		run "${own[@]}" admin client keygen --out "/keys/client/$client"
		chmod 444 "$state/client/$client.jwks.json"
	fi
	write keycloak-realm.json < <(keycloak_realm)
}

# sample loads the sample data and registers the demo client, unless they exist.
sample() {
	local issuer folder patients=${PATIENTS:-50}
	folder=$(cat "$state/sample" 2>/dev/null || true)
	if [[ $folder != "$patients-"* ]]; then
		folder=$patients-$(random 4) # an incomplete population is in another folder
		run sluice synth --patients "$patients" --seed 1 --out "/sample/$folder"
		write sample <<<"$folder"
	fi
	run sluice load "/sample/$folder"
	if ! run sluice admin client show --id "$client" >/dev/null 2>&1; then
		run --volume "$(cd "$state" && pwd)/client/$client.jwks.json:/client.jwks.json:ro" \
			sluice admin client register --id "$client" --jwks-file /client.jwks.json --scope 'system/*.rs'
	fi
	for issuer in $(sed -n 's/^  - name: //p' "$state/issuers.yaml"); do
		run sluice admin grant set --issuer "$issuer" --subject "$client" --types all --groups all --patients all \
			--level group --level patient --level system
	done
}

quickstart() {
	cat <<-EOF

		Everything is up and healthy. FHIR base: $(api_url)
		The demo client's private key: $state/client/$client.key.json

		Export all synthetic patients and verify the files (bin/sluice is built by \`make build\`,
		or on Linux copied out of the image: docker compose cp api:/usr/local/bin/sluice bin/):

		  SSL_CERT_FILE=$state/ca.pem bin/sluice export --base $(api_url) --group $group --out $state/export \\
		    --token-url $(auth_url)/token --client-id $client --client-key $state/client/$client.key.json
		  bin/sluice verify $state/export

		The admin page: http://127.0.0.1:$(setting SCHEDULER_PORT)/operator/
		More workers: docker compose up --detach --scale worker=4 --no-recreate. More: docs/containers.md
	EOF
	if profile_is_on observability; then
		echo "Grafana: http://localhost:$(setting GRAFANA_PORT), admin, password in $state/grafana_password"
	fi
	if profile_is_on external-issuer; then
		echo "Keycloak: https://$(host):$(setting KEYCLOAK_PORT), admin, password in $state/keycloak_password; tokens of it:"
		echo "  --token-url $(keycloak_url)/protocol/openid-connect/token"
	fi
}

up() {
	need_docker
	prepare
	if git rev-parse --verify --quiet HEAD >/dev/null; then
		REVISION=$(git describe --always --dirty --abbrev=40 --exclude='*')
		export REVISION
	fi
	echo "== Building the images: 5 to 20 minutes the first time, later seconds"
	compose build sluice minio # the other services have the image of the first
	keys
	if [ -n "$changed" ]; then
		compose --profile '*' rm --stop --force api auth keycloak
	fi
	echo "== Starting, until all is healthy: about 20 seconds"
	compose up --detach --wait --remove-orphans
	if [ "$(host)" = localhost ] && [[ "$(compose port api 8080)" != 127.0.0.1:* ]]; then
		echo "compose.sh: this engine published the API beyond loopback: set PUBLIC_HOST, or run \`make down\`" >&2
		exit 1
	fi
	echo "== Generating ${PATIENTS:-50} synthetic patients and loading them: about a minute per 1,000"
	sample
	quickstart
}

down() {
	need_docker
	prepare # docker-compose.yml needs its files
	compose --profile '*' down --volumes --remove-orphans
	rm -rf "$state"
}

case "${1:-}" in
up | down | prepare | keys) "$1" ;;
*)
	sed -n '2,/^set/{/^set/!p}' "$0" | sed 's/^# \{0,1\}//' >&2
	exit 2
	;;
esac
