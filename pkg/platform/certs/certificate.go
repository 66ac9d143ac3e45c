// Package certs loads TLS certificates and certificate authorities from PEM files.
package certs

import (
	"bytes"
	"crypto/tls"
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
// second, on a TLS handshake or a metrics scrape. Unusable files, such as a new certificate whose key is not written yet,
// change nothing: the previous pair stays in use.
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

// pair is the content of the two files.
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

// latest reloads the files when that is due.
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
