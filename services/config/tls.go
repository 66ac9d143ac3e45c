package config

import (
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/sluice-fhir/sluice/pkg/platform/certs"
)

// TLS configures the certificates of the listeners. The files are PEM and are reloaded when they change.
type TLS struct {
	// certificate of the public listener, PEM, reloaded when it changes; none: plain HTTP: docs/tls.md
	CertFile string `env:"TLS_CERT_FILE"`
	KeyFile  string `env:"TLS_KEY_FILE"` // its key
	// the private listener uses TLS with the same certificate
	PrivateTLS bool `env:"PRIVATE_TLS"`
	// a certificate of its own for the private listener
	PrivateCertFile string `env:"PRIVATE_TLS_CERT_FILE"`
	PrivateKeyFile  string `env:"PRIVATE_TLS_KEY_FILE"` // its key
	// authorities, PEM; clients of the private listener need a certificate issued by one of them
	PrivateClientCA string `env:"PRIVATE_CLIENT_CA_FILE"`
	// open connections of the public listener; more wait
	MaxConnections int `env:"MAX_CONNECTIONS" envDefault:"10000"`
}

// files names a certificate and its key, with the variables they come from.
type files struct{ certName, cert, keyName, key string }

func (t TLS) public() files {
	return files{"SLUICE_TLS_CERT_FILE", t.CertFile, "SLUICE_TLS_KEY_FILE", t.KeyFile}
}

// private returns the files of the private listener, or none if it serves plain HTTP.
func (t TLS) private() files {
	switch {
	case t.PrivateCertFile != "" || t.PrivateKeyFile != "":
		return files{"SLUICE_PRIVATE_TLS_CERT_FILE", t.PrivateCertFile, "SLUICE_PRIVATE_TLS_KEY_FILE", t.PrivateKeyFile}
	case t.PrivateTLS:
		return t.public()
	}
	return files{}
}

// open reads the certificate, or returns nil when there is none.
func (f files) open(log *slog.Logger) (*certs.Certificate, error) {
	if f.cert == "" && f.key == "" {
		return nil, nil //nolint:nilnil // plain HTTP
	}
	if f.cert == "" || f.key == "" {
		return nil, fmt.Errorf("%s and %s must be set both or neither", f.certName, f.keyName)
	}
	certificate, err := certs.Open(f.cert, f.key, log, time.Now)
	if err != nil {
		return nil, fmt.Errorf("%s and %s: %w", f.certName, f.keyName, err)
	}
	return certificate, nil
}

// clients returns the authorities for client certificates of the private listener. nil: it requires none.
func (t TLS) clients() (*x509.CertPool, error) {
	if t.PrivateClientCA == "" {
		return nil, nil //nolint:nilnil // as documented
	}
	if t.private() == (files{}) {
		return nil, errors.New("SLUICE_PRIVATE_CLIENT_CA_FILE needs SLUICE_PRIVATE_TLS=true")
	}
	pool, err := certs.LoadPool(t.PrivateClientCA)
	if err != nil {
		return nil, fmt.Errorf("SLUICE_PRIVATE_CLIENT_CA_FILE: %w", err)
	}
	return pool, nil
}

// Validate refuses what Listeners would refuse.
func (t TLS) Validate() error {
	log := slog.New(slog.DiscardHandler)
	_, publicErr := t.public().open(log)
	var privateErr error
	switch own := t.private(); {
	case t.PrivateTLS && own.cert == "" && own.key == "":
		privateErr = errors.New("SLUICE_PRIVATE_TLS needs SLUICE_TLS_CERT_FILE or SLUICE_PRIVATE_TLS_CERT_FILE")
	case own != t.public():
		_, privateErr = own.open(log)
	}
	_, clientErr := t.clients()
	var boundErr error
	if t.MaxConnections < 1 {
		boundErr = errors.New("SLUICE_MAX_CONNECTIONS must be at least 1")
	}
	return errors.Join(publicErr, privateErr, clientErr, boundErr)
}
