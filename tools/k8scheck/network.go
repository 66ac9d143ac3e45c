package k8scheck

import (
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// policies are what the NetworkPolicies of a namespace let through. As in Kubernetes, a pod that some policy selects may do
// what one of them allows, and one that none selects may do everything.
type policies struct {
	set  *Set
	list []networkingv1.NetworkPolicy
}

// Arrows are the connections that are allowed, as "from -> to:port", sorted. Pods of the namespace go by their label
// app.kubernetes.io/name, pods of others by the name of the namespace and their label, addresses by the block. It is an
// error if a policy selects no pod or names a port that a pod has not.
func (s *Set) Arrows() ([]string, error) {
	list, err := all[networkingv1.NetworkPolicy](s, "NetworkPolicy")
	if err != nil {
		return nil, err
	}
	p := policies{set: s, list: list}
	arrows := map[string]bool{}
	for _, from := range s.Workloads {
		for _, to := range s.Workloads {
			for _, container := range to.Template.Spec.Containers {
				for _, port := range container.Ports {
					out, err := p.allows(from, to, port, networkingv1.PolicyTypeEgress)
					if err != nil {
						return nil, err
					}
					in, err := p.allows(to, from, port, networkingv1.PolicyTypeIngress)
					if err != nil {
						return nil, err
					}
					if out && in {
						arrows[fmt.Sprintf("%s -> %s:%d", from.Component, to.Component, port.ContainerPort)] = true
					}
				}
			}
		}
	}
	for _, policy := range list {
		if err := p.beyond(policy, arrows); err != nil {
			return nil, fmt.Errorf("NetworkPolicy %s: %w", policy.Name, err)
		}
	}
	var sorted []string
	for arrow := range arrows {
		sorted = append(sorted, arrow)
	}
	slices.Sort(sorted)
	return sorted, nil
}

// allows says whether the policies on one end, own, let a connection through to or from the other end. The port is that of
// whoever is connected to.
func (p policies) allows(own, other Workload, port corev1.ContainerPort, way networkingv1.PolicyType) (bool, error) {
	isolated := false
	for _, policy := range p.list {
		mine, err := matches(&policy.Spec.PodSelector, own.Template.Labels)
		if err != nil {
			return false, err
		}
		if !mine || !slices.Contains(policy.Spec.PolicyTypes, way) {
			continue
		}
		isolated = true
		for _, rule := range rules(policy, way) {
			if !portAllowed(rule.ports, port) {
				continue
			}
			if len(rule.peers) == 0 {
				return true, nil
			}
			for _, peer := range rule.peers {
				if peer.NamespaceSelector != nil || peer.PodSelector == nil {
					continue // elsewhere
				}
				ok, err := matches(peer.PodSelector, other.Template.Labels)
				if err != nil || ok {
					return ok, err
				}
			}
		}
	}
	return !isolated, nil
}

// rule is one of either way.
type rule struct {
	peers []networkingv1.NetworkPolicyPeer
	ports []networkingv1.NetworkPolicyPort
}

func rules(policy networkingv1.NetworkPolicy, way networkingv1.PolicyType) []rule {
	var found []rule
	if way == networkingv1.PolicyTypeEgress {
		for _, r := range policy.Spec.Egress {
			found = append(found, rule{r.To, r.Ports})
		}
		return found
	}
	for _, r := range policy.Spec.Ingress {
		found = append(found, rule{r.From, r.Ports})
	}
	return found
}

func portAllowed(ports []networkingv1.NetworkPolicyPort, port corev1.ContainerPort) bool {
	return len(ports) == 0 || slices.ContainsFunc(ports, func(p networkingv1.NetworkPolicyPort) bool {
		switch {
		case protocol(p.Protocol) != corev1.ProtocolTCP:
			return false
		case p.Port == nil:
			return true
		case p.Port.Type == intstr.String:
			return p.Port.StrVal == port.Name
		}
		return p.Port.IntVal == port.ContainerPort
	})
}

func protocol(p *corev1.Protocol) corev1.Protocol {
	if p == nil {
		return corev1.ProtocolTCP
	}
	return *p
}

func matches(selector *metav1.LabelSelector, of map[string]string) (bool, error) {
	chosen, err := metav1.LabelSelectorAsSelector(selector)
	if err != nil {
		return false, err
	}
	return chosen.Matches(labels.Set(of)), nil
}

// beyond adds the arrows of a policy to and from what is not of this namespace, and checks its ends within.
func (p policies) beyond(policy networkingv1.NetworkPolicy, arrows map[string]bool) error {
	own, err := p.set.selected(&policy.Spec.PodSelector)
	if err != nil {
		return err
	}
	if len(own) == 0 {
		return fmt.Errorf("it selects no pods")
	}
	for _, way := range policy.Spec.PolicyTypes {
		for _, rule := range rules(policy, way) {
			for _, peer := range rule.peers {
				end := ""
				switch {
				case peer.IPBlock != nil:
					end = peer.IPBlock.CIDR
				case peer.NamespaceSelector != nil:
					end = peer.NamespaceSelector.MatchLabels["kubernetes.io/metadata.name"] + "/"
					if peer.PodSelector != nil {
						for _, key := range []string{"app.kubernetes.io/name", "k8s-app"} {
							end += peer.PodSelector.MatchLabels[key]
						}
					}
				}
				if err := p.ends(own, peer, end, way, rule.ports, arrows); err != nil {
					return err
				}
			}
			if len(rule.ports) == 0 {
				return fmt.Errorf("a rule without ports allows all of them")
			}
			if len(rule.peers) == 0 {
				return fmt.Errorf("a rule without peers allows everybody")
			}
		}
	}
	return nil
}

func (p policies) ends(own []Workload, peer networkingv1.NetworkPolicyPeer, end string, way networkingv1.PolicyType,
	ports []networkingv1.NetworkPolicyPort, arrows map[string]bool,
) error {
	targets := own
	if way == networkingv1.PolicyTypeEgress {
		targets = nil
		if end == "" {
			var err error
			if targets, err = p.set.selected(peer.PodSelector); err != nil {
				return err
			}
			if len(targets) == 0 {
				return fmt.Errorf("it lets pods connect to pods that there are not")
			}
		}
	}
	for _, port := range ports {
		for _, target := range targets {
			if target.port(*port.Port) == 0 {
				return fmt.Errorf("%s has no port %s", target, port.Port)
			}
		}
		if end == "" {
			continue
		}
		for _, w := range own {
			switch way {
			case networkingv1.PolicyTypeEgress:
				arrows[fmt.Sprintf("%s -> %s:%s", w.Component, end, port.Port)] = true
			case networkingv1.PolicyTypeIngress:
				arrows[fmt.Sprintf("%s -> %s:%d", end, w.Component, w.port(*port.Port))] = true
			}
		}
	}
	return nil
}
