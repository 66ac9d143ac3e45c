package pgdb

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"net"
	"path/filepath"

	"github.com/jackc/pgx/v5/pgconn"
)

// secure replaces the sslmodes "prefer" (pgx's default) and "allow" with verify-full, unless the server is on this machine:
// both modes accept any server and plain text. Certificates are verified with the roots unless the URL has an sslrootcert.
func secure(config *pgconn.Config, roots *x509.CertPool) {
	all := append([]*pgconn.FallbackConfig{{Host: config.Host, Port: config.Port, TLSConfig: config.TLSConfig}},
		config.Fallbacks...)
	var kept []*pgconn.FallbackConfig
	for i, one := range all {
		// For these modes pgx has two adjacent entries for a server, with and without TLS.
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

// local reports whether the host is this machine, so that no network is involved.
func local(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || filepath.IsAbs(host) || ip != nil && ip.IsLoopback()
}
