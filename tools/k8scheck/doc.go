// Package k8scheck is what checks k8s/: every overlay is rendered by kustomize, applied to a real kube-apiserver that
// refuses every field it does not know, and held against what the services themselves say: the binaries accept the
// configuration that their pods would give them, answer the probes, and listen on the ports that others name.
//
// There is no kubelet and no controller: nothing of it shows that an image runs. Its tests are the check;
// scripts/k8s-verify.sh builds what they need.
package k8scheck
