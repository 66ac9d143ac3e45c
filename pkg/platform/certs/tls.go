package certs

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"

	"github.com/sluice-fhir/sluice/pkg/platform/configfile"
)

// ServerTLS returns the configuration of a listener: TLS 1.2 and 1.3, only forward-secret key exchange and authenticated
// encryption (RFC 9325, 4.2), and HTTP/2. With clientCAs a client must present a certificate issued by one of them; nil
// requests none.
func ServerTLS(certificate *Certificate, clientCAs *x509.CertPool) *tls.Config {
	config := &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: certificate.Get,
		NextProtos:     []string{"h2", "http/1.1"},
		CipherSuites: []uint16{ // of TLS 1.2; those of TLS 1.3 are not configurable
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
			tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
		},
	}
	if clientCAs != nil {
		config.ClientAuth, config.ClientCAs = tls.RequireAndVerifyClientCert, clientCAs
	}
	return config
}

// LoadPool reads certificate authorities from a PEM file. Errors do not contain the file's name.
func LoadPool(file string) (*x509.CertPool, error) { return addFile(x509.NewCertPool(), file) }

// LoadRoots returns the system's root certificates together with those of a PEM file.
func LoadRoots(file string) (*x509.CertPool, error) {
	pool, err := x509.SystemCertPool()
	if err != nil {
		return nil, fmt.Errorf("system root certificates: %w", err)
	}
	return addFile(pool, file)
}

func addFile(pool *x509.CertPool, file string) (*x509.CertPool, error) {
	content, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("the file cannot be read: %w", configfile.WithoutPath(err))
	}
	if !pool.AppendCertsFromPEM(content) {
		return nil, errors.New("the file holds no PEM certificate")
	}
	return pool, nil
}
