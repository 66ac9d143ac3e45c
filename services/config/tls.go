package config

import (
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-fhir/sluice/pkg/platform/certs"
	"github.com/sluice-fhir/sluice/pkg/platform/httpserver"
)

// privateConnections is how many may be open to the private listener at once: those of probes and of a few operators.
const privateConnections = 256

// TLS is what the listeners of a process show, and ask for. The files are PEM; certificates and keys are read again
// when they change.
type TLS struct {
	// certificate of the public listener, PEM, reloaded when it changes; none: plain HTTP: docs/tls.md
	CertFile string `env:"TLS_CERT_FILE"`
	KeyFile  string `env:"TLS_KEY_FILE"` // its key
	// the private listener uses TLS with the same certificate
	PrivateTLS bool `env:"PRIVATE_TLS"`
	// a certificate of its own for the private listener
	PrivateCertFile string `env:"PRIVATE_TLS_CERT_FILE"`
	PrivateKeyFile  string `env:"PRIVATE_TLS_KEY_FILE"` // its key
	// authorities, PEM; the private listener's clients need a certificate of theirs
	PrivateClientCA string `env:"PRIVATE_CLIENT_CA_FILE"`
	// open connections of the public listener; more wait
	MaxConnections int `env:"MAX_CONNECTIONS" envDefault:"10000"`
}

// files are the variables of one certificate and its key, and the values.
type files struct{ certName, cert, keyName, key string }

func (t TLS) public() files {
	return files{"SLUICE_TLS_CERT_FILE", t.CertFile, "SLUICE_TLS_KEY_FILE", t.KeyFile}
}

// private are the files of the private listener; none when it serves plain HTTP.
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

// clients returns whose certificates the private listener's clients must have, or nil.
func (t TLS) clients() (*x509.CertPool, error) {
	if t.PrivateClientCA == "" {
		return nil, nil //nolint:nilnil // none is asked for
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

// Validate refuses what would keep the listeners from serving.
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

// Listeners are the HTTP options of the listeners of a process.
type Listeners struct {
	Public, Private httpserver.Options
}

// Listeners opens the certificates, has the registry tell how long they are valid, and warns of files with secrets that
// every account of the machine may read.
func (c Common) Listeners(log *slog.Logger, registry prometheus.Registerer) (*Listeners, error) {
	clients, err := c.clients()
	if err != nil {
		return nil, err
	}
	public, err := c.secured("public", c.public(), nil, log, registry)
	if err != nil {
		return nil, err
	}
	public.Limits.Connections = c.MaxConnections
	private, err := c.secured("private", c.private(), clients, log, registry)
	if err != nil {
		return nil, err
	}
	private.Limits.Connections = privateConnections
	for variable, file := range c.secretFiles() {
		if info, err := os.Stat(file); err == nil && info.Mode().Perm()&0o007 != 0 {
			log.Warn("every account of this machine may use a file that holds a secret", "variable", variable)
		}
	}
	return &Listeners{Public: public, Private: private}, nil
}

// secured returns the options of one listener, without limits.
func (c Common) secured(
	name string, from files, clients *x509.CertPool, log *slog.Logger, registry prometheus.Registerer,
) (httpserver.Options, error) {
	options := httpserver.Options{Log: log}
	certificate, err := from.open(log)
	if err != nil || certificate == nil {
		return options, err
	}
	if err := certificate.Register(registry, name); err != nil {
		return options, fmt.Errorf("metrics of the %s listener's certificate: %w", name, err)
	}
	options.TLS = certs.ServerTLS(certificate, clients)
	return options, nil
}
