package config

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"time"

	"github.com/sluice-fhir/sluice/pkg/platform/certs"
)

// Trust configures additional certificate authorities. Every section with a server embeds it, so that one variable
// applies to all.
type Trust struct {
	// authorities, PEM, in addition to the system's: Redis, object store, PostgreSQL, key sets
	CAFile string `env:"CA_FILE"`
}

// Roots returns the root certificates for outgoing connections; nil means the system's.
func (t Trust) Roots() (*x509.CertPool, error) {
	if t.CAFile == "" {
		return nil, nil //nolint:nilnil // as documented
	}
	roots, err := certs.LoadRoots(t.CAFile)
	if err != nil {
		return nil, fmt.Errorf("SLUICE_CA_FILE: %w", err)
	}
	return roots, nil
}

// readable reports whether the file of authorities can be read. Common.Validate reports the error, once.
func (t Trust) readable() bool {
	_, err := t.Roots()
	return err == nil
}

// Client returns the HTTP client for servers of others, such as those of key sets. nil means the default client: the
// system's roots suffice.
func (t Trust) Client() (*http.Client, error) {
	roots, err := t.Roots()
	if err != nil || roots == nil {
		return nil, err
	}
	transport := &http.Transport{
		Proxy: http.ProxyFromEnvironment, ForceAttemptHTTP2: true, IdleConnTimeout: time.Minute,
		TLSHandshakeTimeout: 5 * time.Second, TLSClientConfig: &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: roots},
	}
	return &http.Client{Transport: transport}, nil
}
