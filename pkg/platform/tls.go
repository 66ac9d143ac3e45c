package platform

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
)

// ServerTLS is the configuration of a listener: TLS 1.2 and 1.3, forward secret key exchange and authenticated
// encryption only (RFC 9325, 4.2), HTTP/2 when the client speaks it. With client authorities, a client has to show a
// certificate that one of them issued; without (nil), none is asked for.
func ServerTLS(certificate *Certificate, clients *x509.CertPool) *tls.Config {
	config := &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: certificate.Get,
		NextProtos:     []string{"h2", "http/1.1"},
		CipherSuites: []uint16{ // of TLS 1.2; those of TLS 1.3 are all good and not configurable
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
			tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
		},
	}
	if clients != nil {
		config.ClientAuth, config.ClientCAs = tls.RequireAndVerifyClientCert, clients
	}
	return config
}

// Authorities reads a PEM file of certificates. An error does not quote the file's name.
func Authorities(file string) (*x509.CertPool, error) {
	return withAuthorities(x509.NewCertPool(), file)
}

// Roots returns the system's root certificates and those of a PEM file beside them.
func Roots(file string) (*x509.CertPool, error) {
	pool, err := x509.SystemCertPool()
	if err != nil {
		return nil, fmt.Errorf("the system's root certificates: %w", err)
	}
	return withAuthorities(pool, file)
}

func withAuthorities(pool *x509.CertPool, file string) (*x509.CertPool, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("the file cannot be read: %w", withoutPath(err))
	}
	if !pool.AppendCertsFromPEM(content) {
		return nil, errors.New("the file holds no PEM certificate")
	}
	return pool, nil
}
