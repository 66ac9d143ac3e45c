package tokenapi

import (
	"net/http"
	"net/netip"
	"slices"
	"strings"
)

// address returns the source of a request for counting failures; for IPv6 it is the /64, which usually belongs to one
// machine. Behind trusted proxies it is the last address in X-Forwarded-For that is not a trusted proxy. Addresses before
// it may be forged and are ignored.
func (s *Service) address(r *http.Request) string {
	peer, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return "unknown"
	}
	source := peer.Addr().Unmap()
	hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
	for i := len(hops) - 1; i >= 0 && s.trusted(source); i-- {
		hop, err := netip.ParseAddr(strings.TrimSpace(hops[i]))
		if err != nil {
			break
		}
		source = hop.Unmap()
	}
	bits := source.BitLen()
	if source.Is6() {
		bits = 64
	}
	prefix, err := source.WithZone("").Prefix(bits)
	if err != nil {
		return "unknown"
	}
	return prefix.String()
}

func (s *Service) trusted(address netip.Addr) bool {
	return slices.ContainsFunc(s.cfg.Proxies, func(proxy netip.Prefix) bool { return proxy.Contains(address) })
}
