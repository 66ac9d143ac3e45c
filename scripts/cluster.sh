#!/usr/bin/env bash
# cluster.sh COMMAND...: runs the command beside a real Kubernetes cluster on this machine, and exits with its code.
#
# The cluster has a control plane and two nodes, which are network namespaces with a containerd, kubelet, kube-proxy and
# kube-router each (scripts/cluster/node.sh). CoreDNS, metrics-server and KEDA run in pods. All programs are built from the
# versions that tools/ pins, except for Debian's containerd. Everything is removed when the command ends, and nothing of it
# can be reached from other machines. It needs root.
#
# The command runs in the network namespace of the control plane, with KUBECONFIG set, and with kubectl and cluster-load in
# PATH. `cluster-load IMAGE...` copies images of the Docker engine to the nodes. CLUSTER_STORE is a folder for volumes of type
# hostPath, the same on all nodes. `scripts/cluster.sh bash` starts a shell.
set -euo pipefail

if [ $# = 0 ]; then
	echo "usage: scripts/cluster.sh COMMAND..." >&2
	exit 2
fi
if [ "$(id -u)" != 0 ]; then
	echo "cluster.sh: only root can create network namespaces and run a kubelet" >&2
	exit 1
fi
scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
if ! docker info >/dev/null 2>&1; then
	exec "$scripts/engine.sh" "$0" "$@" # it holds the images
fi
parts=$scripts/cluster
nodes=(1 2)

needed=(ip:iproute2 iptables:iptables ipset:ipset nsenter:util-linux openssl:openssl containerd:containerd runc:runc)
for program in "${needed[@]}"; do
	command -v "${program%:*}" >/dev/null || "$scripts/need.sh" "${program%:*}" "the cluster needs it" "${program#*:}"
done

bin=$(mktemp -d "${TMPDIR:-/tmp}/sluice-cluster.XXXXXX")
work=$bin/work
bin=$bin/bin
mkdir -p "$bin/cni" "$work/store"
chmod 755 "${bin%/bin}"
control=sluice-control

# tool MODULE [PROGRAM [NAME]]: puts a program into $bin.
tool() { ln -s "$("$scripts/tool.sh" "$1" "${2:-$1}")" "$bin/${3:-${2:-$1}}"; }

stop() {
	local node tries
	trap '' INT TERM
	# Of a node this is the first process of its PID namespace; the others die with it.
	jobs -p | xargs --no-run-if-empty kill -KILL 2>/dev/null || true
	{ wait; } 2>/dev/null # without a line for each
	for node in "${nodes[@]}"; do
		ip netns delete "sluice-node$node" 2>/dev/null || true
		for tries in {1..50}; do # until its last processes are gone
			find /sys/fs/cgroup -depth -type d -path "*/sluice-node$node*" -exec rmdir {} + 2>/dev/null && break
			sleep 0.1
		done
	done
	ip netns delete "$control" 2>/dev/null || true
	rm -rf "${bin%/bin}"
}
trap stop EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

# fail MESSAGE: prints the ends of the logs.
fail() {
	echo "cluster.sh: $1; the ends of the logs:" >&2
	tail -n 8 "$work"/*.log "$work"/node*/*.log >&2
	exit 1
}

# eventually SECONDS WHAT COMMAND...: repeats the command until it succeeds.
eventually() {
	local deadline=$((SECONDS + $1)) what=$2
	shift 2
	until "$@" >/dev/null 2>&1; do
		[ "$SECONDS" -lt "$deadline" ] || fail "$what: not within the time"
		sleep 0.5
	done
}

for program in kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl; do
	tool kubernetes "$program"
done
tool kubernetes server etcd
tool kube-router
tool coredns
tool metrics-server
tool keda operator keda
tool keda adapter keda-adapter
for program in ptp loopback host-local; do
	ln -s "$("$scripts/tool.sh" cni "$program")" "$bin/cni/$program"
done

# The network: one bridge in the namespace of the control plane, a cable to each node, a route to the pods of each node.
ip netns add "$control"
ip -n "$control" link set lo up
ip -n "$control" link add br0 type bridge
ip -n "$control" address add 10.89.0.1/24 dev br0
ip -n "$control" link set br0 up
for node in "${nodes[@]}"; do
	name=sluice-node$node
	ip netns add "$name"
	ip -n "$control" link add "node$node" type veth peer name eth0 netns "$name"
	ip -n "$control" link set "node$node" master br0 up
	ip -n "$name" link set lo up
	ip -n "$name" address add "10.89.0.1$node/24" dev eth0
	ip -n "$name" link set eth0 up
	ip -n "$name" route add default via 10.89.0.1
	ip -n "$control" route add "10.244.$node.0/24" via "10.89.0.1$node"
	for other in "${nodes[@]}"; do
		[ "$other" = "$node" ] || ip -n "$name" route add "10.244.$other.0/24" via "10.89.0.1$other"
	done
	nsenter --net="/run/netns/$name" sysctl -qw net.ipv4.ip_forward=1
done
in_control() { nsenter --net="/run/netns/$control" "$@"; }

# Certificates. One authority signs everything; the administrator and the nodes have tokens.
tls=$work/tls
mkdir "$tls"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=cluster \
	-keyout "$tls/ca.key" -out "$tls/ca.pem" 2>/dev/null
# certificate NAME ALTERNATIVES
certificate() {
	openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$1" -keyout "$tls/$1.key" 2>/dev/null |
		openssl x509 -req -days 2 -CA "$tls/ca.pem" -CAkey "$tls/ca.key" -CAcreateserial \
			-extfile <(printf 'subjectAltName=%s\n' "$2") -out "$tls/$1.pem" 2>/dev/null
}
certificate apiserver IP:10.89.0.1,IP:10.96.0.1,DNS:kubernetes.default.svc
certificate aggregator DNS:aggregator
token=$(openssl rand -hex 16)
{
	echo "$token,admin,admin,system:masters"
	for node in "${nodes[@]}"; do
		echo "$token$node,system:node:node$node,node$node,system:nodes"
	done
} >"$work/tokens.csv"

# kubeconfig FILE TOKEN
kubeconfig() {
	"$bin/kubectl" --kubeconfig "$1" config set-cluster c --server https://10.89.0.1:6443 \
		--certificate-authority "$tls/ca.pem" --embed-certs >/dev/null
	"$bin/kubectl" --kubeconfig "$1" config set-credentials u --token "$2" >/dev/null
	"$bin/kubectl" --kubeconfig "$1" config set-context c --cluster c --user u >/dev/null
	"$bin/kubectl" --kubeconfig "$1" config use-context c >/dev/null
}
export KUBECONFIG=$work/kubeconfig
kubeconfig "$KUBECONFIG" "$token"

# start NAME COMMAND...: starts a part of the control plane.
start() {
	local name=$1
	shift
	nsenter --net="/run/netns/$control" "$@" >"$work/$name.log" 2>&1 & # no function, so that $! is the program
}
start etcd "$bin/etcd" --data-dir "$work/etcd" --unsafe-no-fsync
start kube-apiserver "$bin/kube-apiserver" --etcd-servers http://127.0.0.1:2379 --advertise-address 10.89.0.1 \
	--tls-cert-file "$tls/apiserver.pem" --tls-private-key-file "$tls/apiserver.key" --token-auth-file "$work/tokens.csv" \
	--service-account-issuer https://kubernetes.default.svc --service-account-key-file "$tls/apiserver.pem" \
	--service-account-signing-key-file "$tls/apiserver.key" --authorization-mode Node,RBAC \
	--service-cluster-ip-range 10.96.0.0/16 --allow-privileged --kubelet-preferred-address-types InternalIP \
	--enable-aggregator-routing --requestheader-client-ca-file "$tls/ca.pem" --requestheader-allowed-names aggregator \
	--requestheader-extra-headers-prefix X-Remote-Extra- --requestheader-group-headers X-Remote-Group \
	--requestheader-username-headers X-Remote-User \
	--proxy-client-cert-file "$tls/aggregator.pem" --proxy-client-key-file "$tls/aggregator.key"
kube() { in_control "$bin/kubectl" "$@"; }
eventually 120 "the kube-apiserver is ready" kube get --raw /readyz
start kube-controller-manager "$bin/kube-controller-manager" --kubeconfig "$KUBECONFIG" --leader-elect=false \
	--root-ca-file "$tls/ca.pem" --service-account-private-key-file "$tls/apiserver.key" \
	--node-monitor-grace-period 40s
start kube-scheduler "$bin/kube-scheduler" --kubeconfig "$KUBECONFIG" --leader-elect=false

# The nodes.
for node in "${nodes[@]}"; do
	home=$work/node$node
	mkdir "$home"
	kubeconfig "$home/kubeconfig" "$token$node"
	nsenter --net="/run/netns/sluice-node$node" unshare --mount --uts --pid --fork --mount-proc --kill-child \
		"$parts/node.sh" "$node" "$home" "$bin" >"$home/node.log" 2>&1 &
done
for node in "${nodes[@]}"; do
	eventually 60 "containerd of node $node" ctr --address "$work/node$node/containerd.sock" version
done

# load IMAGE...: copies images of the engine to the nodes.
cat >"$bin/cluster-load" <<-EOF
	#!/usr/bin/env bash
	set -euo pipefail
	docker save --output "$work/images.tar" "\$@"
	imports=()
	for node in ${nodes[*]}; do
		ctr --address "$work/node\$node/containerd.sock" --namespace k8s.io images import "$work/images.tar" >/dev/null &
		imports+=(\$!)
	done
	for import in "\${imports[@]}"; do wait "\$import"; done
	rm "$work/images.tar"
EOF
chmod 755 "$bin/cluster-load"

# image NAME PROGRAM [CHANGE...]: makes an image that holds one program, and copies it to the nodes.
image() {
	local name=$1 program=$2 changes=() change
	shift 2
	for change in "ENTRYPOINT [\"/${program##*/}\"]" "$@"; do changes+=(--change "$change"); done
	tar -C "${program%/*}" --dereference -c "${program##*/}" | docker import "${changes[@]}" - "$name" >/dev/null
	images+=("$name")
}
images=()
CGO_ENABLED=0 go build -o "$bin/pause" "$parts/pause.go"
image sluice-cluster/pause:1 "$bin/pause"
image sluice-cluster/coredns:1 "$bin/coredns"
image sluice-cluster/metrics-server:1 "$bin/metrics-server"
image ghcr.io/kedacore/keda:main "$bin/keda" "USER 65532"
image ghcr.io/kedacore/keda-metrics-apiserver:main "$bin/keda-adapter" "USER 65532"
"$bin/cluster-load" "${images[@]}"
docker image rm "${images[@]}" >/dev/null # the nodes have them

# What runs in the cluster besides Sluice. The manifests of KEDA and metrics-server are those of their Go modules.
# module NAME PATH: the source of a Go module that tools/NAME pins.
module() {
	GOWORK=off go -C "$scripts/../tools/$1" mod download "$2"
	GOWORK=off go -C "$scripts/../tools/$1" list -m -f '{{.Dir}}' "$2"
}
cp -r "$parts/addons" "$work/addons"
cp -r "$(module keda github.com/kedacore/keda/v2)/config" "$work/addons/keda/config"
cp -r "$(module metrics-server sigs.k8s.io/metrics-server)/manifests/base" "$work/addons/metrics-server/base"
chmod -R u+w "$work/addons"
operator=$(module prometheus-operator github.com/prometheus-operator/prometheus-operator)/example/prometheus-operator-crd
for definition in podmonitors prometheusrules; do
	kube apply --server-side -f "$operator/monitoring.coreos.com_$definition.yaml" >/dev/null
done
for addon in coredns metrics-server keda; do
	"$bin/kubectl" kustomize "$work/addons/$addon" | kube apply --server-side -f - >/dev/null
done
for volume in 1 2 3; do
	mkdir -p "$work/volumes/$volume"
	sed "s|@NAME@|volume-$volume|; s|@PATH@|$work/volumes/$volume|" "$parts/volume.yaml" | kube apply -f - >/dev/null
done
for node in "${nodes[@]}"; do
	eventually 60 "node $node is registered" kube get node "node$node"
	kube patch node "node$node" --patch "{\"spec\": {\"podCIDR\": \"10.244.$node.0/24\"}}" >/dev/null
done
eventually 180 "the nodes are ready" kube wait --for condition=Ready nodes --all --timeout 1s
for addon in kube-system/coredns kube-system/metrics-server keda/keda-operator keda/keda-metrics-apiserver; do
	eventually 300 "$addon is available" \
		kube --namespace "${addon%/*}" wait --for condition=Available "deployment/${addon#*/}" --timeout 1s
done
eventually 120 "the API of metrics" kube get --raw /apis/metrics.k8s.io/v1beta1/nodes
eventually 120 "the API of external metrics" kube get --raw /apis/external.metrics.k8s.io/v1beta1
echo "cluster.sh: Kubernetes is up: $SECONDS s" >&2

export PATH=$bin:$PATH CLUSTER_STORE=$work/store
code=0
in_control "$@" || code=$?
exit "$code"
