package pgdb

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"net"
	"path/filepath"

	"github.com/jackc/pgx/v5/pgconn"
)

// secure takes the sslmodes "prefer", which is meant when a URL names none, and "allow" for verify-full, unless the
// server is on this machine. They would talk to anybody, and in plain text when that is what he offers. Servers that are
// to be verified are verified by the roots where the URL names none of its own (sslrootcert).
func secure(config *pgconn.Config, roots *x509.CertPool) {
	all := append([]*pgconn.FallbackConfig{{Host: config.Host, Port: config.Port, TLSConfig: config.TLSConfig}},
		config.Fallbacks...)
	var kept []*pgconn.FallbackConfig
	for i, one := range all {
		// Where the mode leaves open how, pgx tries a server both ways, one after the other.
		if i > 0 && one.Host == all[i-1].Host && one.Port == all[i-1].Port && !local(one.Host) &&
			(one.TLSConfig == nil) != (all[i-1].TLSConfig == nil) {
			last := kept[len(kept)-1]
			last.TLSConfig = verified(cmp.Or(one.TLSConfig, all[i-1].TLSConfig), one.Host)
			continue
		}
		kept = append(kept, one)
	}
	for _, one := range kept {
		if one.TLSConfig != nil && one.TLSConfig.RootCAs == nil {
			one.TLSConfig.RootCAs = roots
		}
	}
	config.Host, config.Port, config.TLSConfig = kept[0].Host, kept[0].Port, kept[0].TLSConfig
	config.Fallbacks = kept[1:]
}

func verified(config *tls.Config, host string) *tls.Config {
	config = config.Clone()
	config.InsecureSkipVerify = false
	config.ServerName = host
	return config
}

// local reports whether the host is this machine, where nobody is in between.
func local(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || filepath.IsAbs(host) || ip != nil && ip.IsLoopback()
}
