#!/usr/bin/env bash
# node.sh NODE HOME BIN: a node of scripts/cluster.sh. It is the first process of a PID namespace, and has its own network,
# mounts and host name. HOME holds its kubeconfig and its state; containerd listens on HOME/containerd.sock.
set -euo pipefail

node=$1 home=$2 bin=$3
export PATH=$bin:$PATH

mount --make-rprivate /
for folder in /run /var/lib /var/log; do # kubelets, containerds and CNI plug-ins have fixed paths below these
	mount -t tmpfs tmpfs "$folder"
done
hostname "node$node"

# The group of the node's pods in each hierarchy of cgroups v1, or in the only one of v2.
for group in /sys/fs/cgroup /sys/fs/cgroup/*; do
	[ -e "$group/cgroup.procs" ] || continue
	mkdir -p "$group/sluice-node$node"
	for setting in cpuset.cpus cpuset.mems; do
		if [ -e "$group/$setting" ]; then
			cat "$group/$setting" >"$group/sluice-node$node/$setting"
		fi
	done
done

mkdir "$home/cni"
cat >"$home/cni/pods.conflist" <<-EOF
	{"cniVersion": "1.0.0", "name": "pods", "plugins": [{
		"type": "ptp",
		"ipam": {"type": "host-local", "ranges": [[{"subnet": "10.244.$node.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}
	}]}
EOF
cat >"$home/containerd.toml" <<-EOF
	version = 2
	root = "$home/containerd"
	state = "/run/containerd"
	[grpc]
	address = "$home/containerd.sock"
	[plugins."io.containerd.grpc.v1.cri"]
	sandbox_image = "docker.io/sluice-cluster/pause:1"
	restrict_oom_score_adj = true # root may lack CAP_SYS_RESOURCE
	[plugins."io.containerd.grpc.v1.cri".cni]
	bin_dir = "$bin/cni"
	conf_dir = "$home/cni"
EOF
cat >"$home/kubelet.yaml" <<-EOF
	apiVersion: kubelet.config.k8s.io/v1beta1
	kind: KubeletConfiguration
	authentication: {anonymous: {enabled: true}, webhook: {enabled: false}}
	authorization: {mode: AlwaysAllow}
	cgroupDriver: cgroupfs
	cgroupRoot: /sluice-node$node
	clusterDNS: [10.96.0.10]
	clusterDomain: cluster.local
	containerRuntimeEndpoint: unix://$home/containerd.sock
	evictionHard: {memory.available: 100Mi, nodefs.available: 1%, imagefs.available: 1%}
	failCgroupV1: false
	failSwapOn: false
	localStorageCapacityIsolation: false
	oomScoreAdj: 0
	resolvConf: $home/resolv.conf
EOF
cat >"$home/kube-proxy.yaml" <<-EOF
	apiVersion: kubeproxy.config.k8s.io/v1alpha1
	kind: KubeProxyConfiguration
	clientConnection: {kubeconfig: $home/../kubeconfig}
	clusterCIDR: 10.244.0.0/16
	conntrack: {maxPerCore: 0, min: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
	hostnameOverride: node$node
	mode: iptables
	oomScoreAdj: 0
EOF
echo nameserver 10.96.0.10 >"$home/resolv.conf"

containerd --config "$home/containerd.toml" >"$home/containerd.log" 2>&1 &
kubelet --kubeconfig "$home/kubeconfig" --config "$home/kubelet.yaml" --root-dir "$home/kubelet" \
	--hostname-override "node$node" --node-ip "10.89.0.1$node" >"$home/kubelet.log" 2>&1 &
kube-proxy --config "$home/kube-proxy.yaml" >"$home/kube-proxy.log" 2>&1 &
until kubectl --kubeconfig "$home/../kubeconfig" get node "node$node" >/dev/null 2>&1; do # kube-router exits without it
	sleep 0.5
done
kube-router --kubeconfig "$home/../kubeconfig" --hostname-override "node$node" --service-cluster-ip-range 10.96.0.0/16 \
	--run-firewall --run-router=false --run-service-proxy=false --enable-cni=false >"$home/kube-router.log" 2>&1 &
wait
