// Package certs loads TLS certificates and certificate authorities from PEM files.
package certs

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-fhir/sluice/pkg/platform/configfile"
)

// reloadInterval is the shortest time between two reads of the files.
const reloadInterval = time.Second

// Certificate is a server's certificate with its key. The PEM files are read again while it is in use: at most once a
// second, on a TLS handshake or a metrics scrape. If the files are unusable, such as a new certificate without its new key,
// the previous pair stays in use.
//
// Contents are compared, not modification times, so replaced files, renamed files and switched symbolic links (Kubernetes
// secrets) all work.
type Certificate struct {
	certFile, keyFile string
	log               *slog.Logger
	now               func() time.Time

	current  atomic.Pointer[tls.Certificate]
	failures atomic.Int64

	reloading sync.Mutex // guards the fields below; only taken with TryLock, so handshakes never wait
	checked   time.Time  // when the files were last read
	loaded    pair       // contents that current was parsed from
	lastError string     // already logged
}

type pair struct{ cert, key []byte }

func (p pair) equal(q pair) bool { return bytes.Equal(p.cert, q.cert) && bytes.Equal(p.key, q.key) }

// Open reads the two files. Errors name the certificate or the key and contain neither file names nor contents. now is the
// clock for reloads and expiry. log receives every later certificate, and unusable files.
func Open(certFile, keyFile string, log *slog.Logger, now func() time.Time) (*Certificate, error) {
	c := &Certificate{certFile: certFile, keyFile: keyFile, log: log, now: now, checked: now()}
	read, err := readPair(certFile, keyFile)
	if err != nil {
		return nil, err
	}
	first, err := read.parse()
	if err != nil {
		return nil, err
	}
	c.loaded = read
	c.current.Store(first)
	return c, nil
}

func readPair(certFile, keyFile string) (pair, error) {
	cert, err := os.ReadFile(certFile)
	if err != nil {
		return pair{}, fmt.Errorf("the certificate cannot be read: %w", configfile.WithoutPath(err))
	}
	key, err := os.ReadFile(keyFile)
	if err != nil {
		return pair{}, fmt.Errorf("the key cannot be read: %w", configfile.WithoutPath(err))
	}
	return pair{cert: cert, key: key}, nil
}

func (p pair) parse() (*tls.Certificate, error) {
	parsed, err := tls.X509KeyPair(p.cert, p.key)
	if err != nil {
		return nil, fmt.Errorf("the certificate and the key cannot be used together: %w", err)
	}
	return &parsed, nil
}

// Get implements tls.Config.GetCertificate.
func (c *Certificate) Get(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.latest(), nil }

func (c *Certificate) latest() *tls.Certificate {
	if c.reloading.TryLock() {
		defer c.reloading.Unlock()
		if age := c.now().Sub(c.checked); age < 0 || age >= reloadInterval {
			c.checked = c.now()
			c.reload()
		}
	}
	return c.current.Load()
}

func (c *Certificate) reload() {
	read, err := readPair(c.certFile, c.keyFile)
	if err == nil && read.equal(c.loaded) {
		c.lastError = ""
		return
	}
	var next *tls.Certificate
	if err == nil {
		next, err = read.parse()
	}
	if err != nil {
		c.failures.Add(1)
		if c.lastError != err.Error() {
			c.lastError = err.Error()
			c.log.Error("cannot load the new TLS certificate; keeping the previous one", "err", err)
		}
		return
	}
	c.loaded, c.lastError = read, ""
	c.current.Store(next)
	c.log.Info("loaded a new TLS certificate", "expires", next.Leaf.NotAfter)
}

// Register adds the certificate's metrics, labelled with the listener's name: sluice_tls_certificate_expiry_seconds and
// sluice_tls_certificate_reload_failures_total.
func (c *Certificate) Register(registry prometheus.Registerer, listener string) error {
	labels := prometheus.Labels{"listener": listener}
	return errors.Join(
		registry.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "sluice_tls_certificate_expiry_seconds", ConstLabels: labels,
			Help: "Seconds until the listener's TLS certificate expires; negative after expiry.",
		}, func() float64 { return c.latest().Leaf.NotAfter.Sub(c.now()).Seconds() })),
		registry.Register(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "sluice_tls_certificate_reload_failures_total", ConstLabels: labels,
			Help: "Failed reloads of the listener's TLS certificate files.",
		}, func() float64 { return float64(c.failures.Load()) })),
	)
}

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
