package config

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/sluice-fhir/sluice/pkg/platform/envconfig"
	"github.com/sluice-fhir/sluice/pkg/platform/health"
)

// healthTimeout bounds --check-health: longer than a readiness report may take, which is 3 s.
const healthTimeout = 5 * time.Second

// privateListener is the part of the configuration that --check-health reads. A healthy process must not appear unhealthy
// because of another setting that has changed since its start.
type privateListener struct {
	TLS
	Private string `env:"PRIVATE_ADDR"`
}

// checkHealth asks the private listener of the service that runs with the same environment whether it is ready.
func checkHealth(ctx context.Context, environ []string) error {
	var listener privateListener
	var relevant []string
	for _, entry := range environ {
		name := strings.TrimPrefix(entry, envconfig.Prefix)
		if name != entry && (strings.HasPrefix(name, "PRIVATE_") || strings.HasPrefix(name, "TLS_")) {
			relevant = append(relevant, entry)
		}
	}
	if err := envconfig.Load(relevant, &listener); err != nil {
		return err
	}
	host, port, err := net.SplitHostPort(listener.Private)
	if err != nil || port == "" || port == "0" {
		return errors.New("SLUICE_PRIVATE_ADDR must name the port that the service listens on")
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "127.0.0.1" // the service listens on all addresses
	}
	scheme, transport := "http", &http.Transport{DisableKeepAlives: true}
	if from := listener.private(); from != (files{}) {
		scheme = "https"
		if transport.TLSClientConfig, err = from.trusted(); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	return health.Get(ctx, transport, scheme+"://"+net.JoinHostPort(host, port)+"/readyz")
}

// trusted accepts exactly this server certificate, whatever its issuer and name, and sends it as the client certificate:
// a listener with PRIVATE_CLIENT_CA_FILE accepts it if those authorities issued it for client use.
func (f files) trusted() (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err != nil {
		return nil, fmt.Errorf("%s and %s cannot be read as a certificate and its key", f.certName, f.keyName)
	}
	roots := x509.NewCertPool()
	roots.AddCert(pair.Leaf)
	name := ""
	switch {
	case len(pair.Leaf.DNSNames) > 0:
		name = strings.Replace(pair.Leaf.DNSNames[0], "*", "any", 1)
	case len(pair.Leaf.IPAddresses) > 0:
		name = pair.Leaf.IPAddresses[0].String()
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS12, RootCAs: roots, ServerName: name, Certificates: []tls.Certificate{pair},
	}, nil
}
