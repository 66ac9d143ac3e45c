#!/usr/bin/env bash
# secrets.sh DIR [NAMESPACE]: prints new random Secrets for the stores of k8s/components/stores, for `kubectl apply -f -`. It
# creates DIR with the files of a client on this machine, demo.key.json and ca.pem. It uses bin/sluice (make build), or the
# program that SLUICE names. The namespace is sluice-dev by default.
set -euo pipefail

dir=${1:?usage: k8s/overlays/dev/secrets.sh DIR [NAMESPACE]}
namespace=${2:-sluice-dev}
sluice=${SLUICE:-$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)/bin/sluice}
if [ ! -x "$sluice" ]; then
	echo "secrets.sh: there is no $sluice: make build" >&2
	exit 1
fi
umask 077
mkdir "$dir"

random() { od -An -N "$1" -tx1 /dev/urandom | tr -d ' \n'; }
random64() { head -c 32 /dev/urandom | base64; }
indented() { sed 's/^/    /' "$1"; }

names=()
for service in sluice-api sluice-auth; do
	names+=(--name "$service" --name "$service.$namespace.svc")
done
"$sluice" admin certificate --out "$dir" "${names[@]}" --name localhost --name 127.0.0.1 >&2
"$sluice" admin client keygen --out "$dir/demo" >&2

redis=$(random 24) postgres=$(random 24) keda=$(random 24)

# secret NAME: prints the head of a Secret; the caller prints its keys.
secret() {
	printf -- '---\napiVersion: v1\nkind: Secret\nmetadata: {name: %s, namespace: %s}\nstringData:\n' "$1" "$namespace"
}

secret redis
printf '  redis.conf: |\n    requirepass %s\n' "$redis"
echo "    user keda on >$keda ~asynq:* +eval +evalsha +type +llen +zcard +ping +hello"
secret sluice-redis-keda
printf '  address: redis.%s.svc:6379\n  username: keda\n  password: %s\n  tls: disable\n' "$namespace" "$keda"
secret sluice-redis
echo "  url: redis://:$redis@redis:6379/0"
secret postgres
echo "  password: $postgres"
for name in sluice-source sluice-directory sluice-migration; do
	secret "$name"
	echo "  url: postgres://sluice:$postgres@postgres:5432/sluice?sslmode=disable"
done
secret sluice-s3
printf '  access-key: sluice\n  secret-key: %s\n' "$(random 24)"
secret sluice-envelope
echo "  keys: dev:$(random64)"
secret sluice-audit
echo "  key: $(random64)"
secret sluice-auth
echo "  key-secret: $(random64)"
for name in sluice-api-tls sluice-auth-tls; do
	secret "$name"
	printf '  tls.crt: |\n%s\n  tls.key: |\n%s\n' "$(indented "$dir/tls.pem")" "$(indented "$dir/tls.key")"
done
secret sluice-ca
printf '  ca.crt: |\n%s\n' "$(indented "$dir/ca.pem")"
secret sluice-clients
printf '  clients.yaml: |\n    clients:\n      - id: demo\n        scope: system/*.rs\n        jwks: %s\n' \
	"$(tr -d '\n' <"$dir/demo.jwks.json")"
rm "$dir/tls.key" "$dir/tls.pem" # they are in the Secrets
