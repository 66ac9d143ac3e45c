#!/usr/bin/env bash
# k8s-verify.sh: applies every overlay of k8s/ to a real kube-apiserver, then runs the program of each container with
# --check-config, with the environment and files that its pod would have.
#
# tools/kubernetes pins kube-apiserver, kubectl and etcd, which are built once and kept. The server is temporary, has the
# custom resource definitions of KEDA and of the Prometheus operator, and listens on loopback only. There is no kubelet
# and no controller: no image runs.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export CGO_ENABLED=0
command -v jq >/dev/null || scripts/need.sh jq "it reads what kubectl prints" jq
apiserver=$(scripts/tool.sh kubernetes kube-apiserver)
kubectl=$(scripts/tool.sh kubernetes kubectl)
etcd=$(scripts/tool.sh kubernetes server) # the name of etcd's main package is go.etcd.io/etcd/server

work=$(mktemp -d "${TMPDIR:-/tmp}/sluice-k8s.XXXXXX")
pids=()
stop() {
	kill -KILL "${pids[@]}" 2>/dev/null || true
	wait
	rm -rf "$work"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

GOWORK=off go -C services build -trimpath -o "$work/bin/" ./api ./auth ./worker ./scheduler ./sluice

# The server. Its certificate, which also signs the tokens of service accounts, and the token of its administrator are new.
free_port() {
	while port=$((20000 + RANDOM % 12000)) && (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; do :; done
}
tls=$work/tls
mkdir "$tls"
"$work/bin/sluice" admin certificate --out "$tls" --name 127.0.0.1 >/dev/null
token=$(od -An -N 16 -tx1 /dev/urandom | tr -d ' \n')
echo "$token,admin,admin,system:masters" >"$work/tokens.csv"
free_port && store=http://127.0.0.1:$port
free_port && peer=http://127.0.0.1:$port
free_port
"$etcd" --data-dir "$work/etcd" --unsafe-no-fsync --listen-client-urls "$store" --advertise-client-urls "$store" \
	--listen-peer-urls "$peer" --initial-advertise-peer-urls "$peer" --initial-cluster "default=$peer" \
	>"$work/etcd.log" 2>&1 &
pids+=($!)
"$apiserver" --etcd-servers "$store" --bind-address 127.0.0.1 --secure-port "$port" --endpoint-reconciler-type none \
	--tls-cert-file "$tls/tls.pem" --tls-private-key-file "$tls/tls.key" --token-auth-file "$work/tokens.csv" \
	--service-account-issuer https://127.0.0.1 --service-account-key-file "$tls/tls.pem" \
	--service-account-signing-key-file "$tls/tls.key" --authorization-mode RBAC --service-cluster-ip-range 10.96.0.0/16 \
	>"$work/apiserver.log" 2>&1 &
pids+=($!)

kube() {
	"$kubectl" --kubeconfig /dev/null --server "https://127.0.0.1:$port" --certificate-authority "$tls/ca.pem" --token "$token" \
		--cache-dir "$work/cache" --warnings-as-errors "$@"
}
apply() { kube apply --server-side --validate=strict -f "$@" >/dev/null; }

deadline=$((SECONDS + 120))
until kube get --raw /readyz >/dev/null 2>&1; do
	if [ "$SECONDS" -ge "$deadline" ] || ! kill -0 "${pids[@]}" 2>/dev/null; then
		echo "k8s-verify.sh: the kube-apiserver did not start:"
		tail -n 20 "$work/etcd.log" "$work/apiserver.log"
		exit 1
	fi
	sleep 0.2
done

# definitions MODULE FOLDER NAME...: installs custom resource definitions from the Go module that tools/MODULE pins.
definitions() {
	local dir=tools/$1 folder=$2 module path name
	shift 2
	module=$(sed -n 's/^require \([^ ]*\) .*/\1/p' "$dir/go.mod")
	GOWORK=off go -C "$dir" mod download "$module"
	path=$(GOWORK=off go -C "$dir" list -m -f '{{.Dir}}' "$module")
	for name in "$@"; do
		apply "$path/$folder/$name.yaml"
	done
}
definitions keda config/crd/bases keda.sh_scaledobjects keda.sh_triggerauthentications
definitions prometheus-operator example/prometheus-operator-crd monitoring.coreos.com_podmonitors \
	monitoring.coreos.com_servicemonitors monitoring.coreos.com_prometheusrules
kube wait --for condition=Established --timeout 60s crd --all >/dev/null

# check_config NAMESPACE: runs the program of each container of ours with the environment, arguments and files that
# scripts/k8s-containers.jq lists, below a folder in place of the root. Services run with --check-config. Commands of the
# command line run as they are: no database listens at 127.0.0.1:1, so they exit with 0 (none needed) or 1 (unavailable),
# and with 2 when the arguments are invalid.
check_config() {
	local container file content args env code output
	kube get --namespace "$1" deployments,jobs,configmaps,secrets -o json |
		jq -c --arg root "$work/roots/$1" -f scripts/k8s-containers.jq >"$work/containers"
	mkdir -p "$work/roots/$1/sample"
	while IFS= read -r container; do
		while IFS=$'\t' read -r file content; do
			mkdir -p "${file%/*}"
			base64 -d <<<"$content" >"$file"
		done < <(jq -r '.files | to_entries[] | "\(.key)\t\(.value | @base64)"' <<<"$container")
		eval "args=($(jq -r '.command | @sh' <<<"$container"))"
		eval "env=($(jq -r '.env | to_entries | map("\(.key)=\(.value)") | @sh' <<<"$container"))"
		args[0]=$work/bin/${args[0]##*/}
		code=0
		if [ "${args[0]##*/}" = sluice ]; then
			output=$(env -i "${env[@]}" "${args[@]}" 2>&1) || code=$?
			[ "$code" != 1 ] || code=0
		else
			output=$(env -i "${env[@]}" "${args[@]}" --check-config 2>&1) || code=$?
		fi
		if [ "$code" != 0 ]; then
			echo "k8s-verify.sh: $(jq -r .name <<<"$container") exits with $code: $output"
			return 1
		fi
		checked=$((checked + 1))
	done <"$work/containers"
}

# check DIR NAMESPACE: applies an overlay and its Secrets, creates a pod of each workload as a dry run, because namespaces
# have rules for pods, and checks the configuration.
check() {
	local dir=$1 namespace=$2 checked=0
	"$kubectl" kustomize "k8s/$dir" >"$work/objects.yaml"
	apply "$work/objects.yaml"
	apply "$work/secrets-$namespace.yaml"
	kube get --namespace "$namespace" serviceaccount default >/dev/null 2>&1 ||
		kube create --namespace "$namespace" serviceaccount default >/dev/null # a controller would create it
	kube get --namespace "$namespace" deployments,statefulsets,jobs -o json | jq '.items[] | {
		apiVersion: "v1", kind: "Pod",
		metadata: {name: .metadata.name, namespace: .metadata.namespace, labels: .spec.template.metadata.labels},
		spec: (.spec.template.spec + {volumes: ((.spec.template.spec.volumes // []) + [
			.spec.volumeClaimTemplates[]?.metadata.name | {name: ., persistentVolumeClaim: {claimName: .}}
		])})
	}' >"$work/pods.json"
	kube create --dry-run=server --validate=strict -f "$work/pods.json" >/dev/null
	check_config "$namespace"
	if [ "$checked" = 0 ]; then
		echo "k8s-verify.sh: $dir has no container of ours"
		return 1
	fi
	echo "k8s-verify.sh: $dir is applied; $checked containers accept their configuration"
}

# secrets NAMESPACE: prints Secrets with stores that refuse connections. Those of production have the form that
# docs/kubernetes.md requires.
secrets() {
	SLUICE=$work/bin/sluice k8s/overlays/dev/secrets.sh "$work/client-$1" "$1" |
		sed -e 's/@postgres:5432/@127.0.0.1:1/; s/@redis:6379/@127.0.0.1:1/'
}
secrets sluice-dev >"$work/secrets-sluice-dev.yaml"
secrets sluice | sed -e 's|redis://:|rediss://sluice:|; s/sslmode=disable/sslmode=verify-full/' >"$work/secrets-sluice.yaml"

check overlays/dev sluice-dev
check overlays/production sluice
check test/every-component sluice
check test/cluster sluice

# An upgrade: production is applied again with another image tag.
cp -r k8s "$work/next"
sed -i 's/newTag: [^}]*/newTag: next/' "$work/next/overlays/production/kustomization.yaml"
"$kubectl" kustomize "$work/next/overlays/production" >"$work/objects.yaml"
apply "$work/objects.yaml"
echo "k8s-verify.sh: overlays/production is applied with another image tag"
