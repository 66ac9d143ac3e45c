#!/usr/bin/env bash
# compose.sh up|down|prepare|keys: the whole system in containers, by docker-compose.yml.
#
#   up       creates missing files (.env, secrets, a certificate), builds, starts and waits, loads sample data, registers
#            a demo client and prints how to export. It may run again after a change.
#   down     removes the containers, their volumes and the secrets.
#   prepare  creates .env and the secrets; keys creates the certificate and the key of the demo client, in a container.
#            After both, `docker compose` works by hand.
#
# SLUICE_COMPOSE_STATE names another folder than .compose for the secrets, and for .env.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

state=${SLUICE_COMPOSE_STATE:-.compose}
settings=${SLUICE_COMPOSE_STATE:+$SLUICE_COMPOSE_STATE/}.env
patients=${PATIENTS:-50}
client=demo group=all

compose() { docker compose --file docker-compose.yml "$@"; }

missing() {
	echo "$1 (or use \`make run\`, which needs no containers)" >&2
	exit 1
}

need_docker() {
	if ! command -v docker >/dev/null; then
		missing "docker is not installed: see https://docs.docker.com/engine/install/"
	fi
	if ! docker compose version >/dev/null 2>&1; then
		missing "docker has no compose plugin: see https://docs.docker.com/compose/install/"
	fi
	if ! docker info >/dev/null 2>&1; then
		missing "the docker daemon does not respond: start it"
	fi
}

random() { od -An -N "$1" -tx1 /dev/urandom | tr -d ' \n'; }

# write FILE: writes standard input to a file, atomically. Containers run as other accounts and get these files with their
# mode, so all users may read them; the mode of their folder protects them.
write() {
	local new=$state/.new-$1
	cat >"$new"
	chmod 444 "$new"
	mv -f "$new" "$state/$1"
}

# once FILE: the same, unless the file exists.
once() {
	if [ -e "$state/$1" ]; then
		cat >/dev/null
	else
		write "$1"
	fi
}

# setting NAME: the value in the environment, or else in .env, as in docker compose.
setting() {
	if [ -n "${!1+set}" ]; then
		echo "${!1}"
	else
		sed -n "s/^$1=//p" "$settings" | tail -n 1
	fi
}

prepare() {
	mkdir -p -m 700 "$state" "$state/client"
	chmod 700 "$state"
	if [ ! -e "$settings" ]; then
		cp .env.example "$settings"
		echo "compose.sh: created .env from .env.example" >&2
	fi
	random 24 | once redis_password
	random 24 | once postgres_password
	random 10 | once s3_access_key
	random 24 | once s3_secret_key
	random 32 | once auth_key
	random 32 | once audit_key
	printf 'first:%s\n' "$(head -c 32 /dev/urandom | base64 | tr -d '\n')" | once envelope_keys
	random 12 | once grafana_password
	random 12 | once keycloak_password
	printf 'requirepass %s\n' "$(<"$state/redis_password")" | write redis_conf
	printf 'redis://:%s@redis:6379/0' "$(<"$state/redis_password")" | write redis_url
	printf 'postgres://sluice:%s@postgres:5432/sluice?sslmode=disable' "$(<"$state/postgres_password")" | write postgres_url
	issuers | write issuers.yaml
	{
		issuers
		keycloak_issuer
	} | write issuers-keycloak.yaml
}

api_url() { echo "https://localhost:$(setting API_PORT)/fhir"; }
auth_url() { echo "https://localhost:$(setting AUTH_PORT)/auth"; }
keycloak_url() { echo "https://localhost:$(setting KEYCLOAK_PORT)/realms/health"; }

# issuers prints the file of docs/access.md. Clients use the published port of the token service, the API uses its name.
issuers() {
	cat <<-EOF
		issuers:
		  - name: $(auth_url)
		    audiences: ["$(api_url)"]
		    jwks_url: https://auth:8081/auth/jwks
		    algorithms: [ES256]
	EOF
}

keycloak_issuer() {
	cat <<-EOF
		  - name: $(keycloak_url)
		    audiences: ["$(api_url)"]
		    jwks_url: https://keycloak:8443/realms/health/protocol/openid-connect/certs
		    algorithms: [RS256]
		    subject_claim: azp
		    required_claims: {typ: Bearer}
	EOF
}

# The realm has the demo client with the same key, so it can export with tokens of either issuer.
keycloak_realm() {
	local realm keys
	realm=$(<scripts/compose/keycloak-realm.json)
	keys=$(tr -d '\n' <"$state/client/$client.jwks.json" | sed 's/\\/\\\\/g; s/"/\\"/g') # a JSON string
	realm=${realm//@AUDIENCE@/"$(api_url)"}
	realm=${realm//@CLIENT@/"$client"}
	printf '%s\n' "${realm//@KEYS@/"$keys"}"
}

# run FLAGS... sluice ARGUMENTS...: runs the command line in a container.
run() { compose run --rm --no-TTY "$@"; }

# keys creates the certificate and the demo client's key in the folder of the secrets, with our account, unless they exist.
keys() {
	local own=(--no-deps --user "$(id -u):$(id -g)" --volume "$(cd "$state" && pwd):/keys" sluice)
	if [ ! -e "$state/tls.key" ]; then
		rm -f "$state/ca.pem" "$state/tls.pem"
		run "${own[@]}" admin certificate --out /keys \
			--name localhost --name 127.0.0.1 --name auth --name api --name keycloak
		chmod 444 "$state/ca.pem" "$state/tls.pem" "$state/tls.key"
	fi
	if [ ! -e "$state/client/$client.jwks.json" ]; then
		rm -f "$state/client/$client.key.json"
		run "${own[@]}" admin client keygen --out "/keys/client/$client"
		chmod 444 "$state/client/$client.jwks.json"
	fi
	keycloak_realm | write keycloak-realm.json
}

# sample loads the sample data and registers the demo client, unless they exist.
sample() {
	local issuer folder
	folder=$(cat "$state/sample" 2>/dev/null || true)
	if [[ $folder != "$patients-"* ]]; then
		folder=$patients-$(random 4) # an incomplete population is in another folder
		run sluice synth --patients "$patients" --seed 1 --out "/sample/$folder"
		printf '%s' "$folder" | write sample
	fi
	run sluice load "/sample/$folder"
	if ! run sluice admin client show --id "$client" >/dev/null 2>&1; then
		run --volume "$(cd "$state" && pwd)/client/$client.jwks.json:/client.jwks.json:ro" \
			sluice admin client register --id "$client" --jwks-file /client.jwks.json --scope 'system/*.rs'
	fi
	for issuer in "$(auth_url)" "$(keycloak_url)"; do
		run sluice admin grant set --issuer "$issuer" --subject "$client" --types all --groups all --patients all
	done
}

quickstart() {
	cat <<-EOF

		Everything is up and healthy. FHIR base: $(api_url)
		The demo client's private key: $state/client/$client.key.json

		Export all $patients synthetic patients and verify the files (\`make build\` builds bin/sluice):

		  SSL_CERT_FILE=$state/ca.pem bin/sluice export --base $(api_url) --group $group --out $state/export \\
		    --token-url $(auth_url)/token --client-id $client --client-key $state/client/$client.key.json
		  bin/sluice verify $state/export

		The admin page: http://127.0.0.1:$(setting SCHEDULER_PORT)/operator/
		More workers: docker compose up --detach --scale worker=4 --no-recreate. More: docs/containers.md
	EOF
}

profile_is_on() { [[ ",$(setting COMPOSE_PROFILES)," == *",$1,"* ]]; }

up() {
	need_docker
	prepare
	if profile_is_on external-issuer; then
		export ISSUERS_FILE=./.compose/issuers-keycloak.yaml
	fi
	compose build
	keys
	compose up --detach --wait --remove-orphans
	sample
	quickstart
	if profile_is_on observability; then
		echo "  Grafana: http://localhost:$(setting GRAFANA_PORT), admin, password in $state/grafana_password"
	fi
	if profile_is_on external-issuer; then
		echo "  Keycloak: https://localhost:$(setting KEYCLOAK_PORT), admin, password in $state/keycloak_password; tokens of it:"
		echo "  --token-url $(keycloak_url)/protocol/openid-connect/token"
	fi
}

down() {
	need_docker
	prepare # docker-compose.yml needs its variables
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
