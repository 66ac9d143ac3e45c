package platform

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
)

// lookAge is how long a certificate is served before its files are looked at again.
const lookAge = time.Second

// Certificate is a server's own certificate with its key. Both are in PEM files, which are read again while it is used:
// at most once a second, when a client connects or the metrics are read. Files that cannot be used, such as a new
// certificate whose key is not there yet, change nothing: the pair that was read before serves on.
//
// It is the content that is compared and not the time of a file, so a replaced file, a renamed one and a mount whose
// symbolic link moved (as Kubernetes changes secrets) are all the same.
type Certificate struct {
	certFile, keyFile string
	log               *slog.Logger
	now               func() time.Time

	serving  atomic.Pointer[tls.Certificate]
	failures atomic.Int64

	look    sync.Mutex // held by the one that reads the files; nobody waits for it
	looked  time.Time
	read    pair   // what serves
	trouble string // what was last logged of files that cannot be used
}

// pair is the content of the two files.
type pair struct{ cert, key []byte }

func (p pair) equal(q pair) bool { return bytes.Equal(p.cert, q.cert) && bytes.Equal(p.key, q.key) }

// OpenCertificate reads the two files. An error says which of them is at fault and quotes neither name nor content.
// The clock says when the files are due to be looked at and how long the certificate is valid; log hears of every
// certificate that comes after the first, and of files that cannot be used.
func OpenCertificate(certFile, keyFile string, log *slog.Logger, now func() time.Time) (*Certificate, error) {
	c := &Certificate{certFile: certFile, keyFile: keyFile, log: log, now: now, looked: now()}
	read, err := readPair(certFile, keyFile)
	if err != nil {
		return nil, err
	}
	first, err := read.parse()
	if err != nil {
		return nil, err
	}
	c.read = read
	c.serving.Store(first)
	return c, nil
}

func readPair(certFile, keyFile string) (pair, error) {
	cert, err := os.ReadFile(certFile)
	if err != nil {
		return pair{}, fmt.Errorf("the certificate cannot be read: %w", withoutPath(err))
	}
	key, err := os.ReadFile(keyFile)
	if err != nil {
		return pair{}, fmt.Errorf("the key cannot be read: %w", withoutPath(err))
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

// Get is tls.Config's GetCertificate.
func (c *Certificate) Get(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.current(), nil }

// current looks at the files when that is due. Who comes while another one looks takes what is there.
func (c *Certificate) current() *tls.Certificate {
	if c.look.TryLock() {
		defer c.look.Unlock()
		if age := c.now().Sub(c.looked); age < 0 || age >= lookAge {
			c.looked = c.now()
			c.reload()
		}
	}
	return c.serving.Load()
}

func (c *Certificate) reload() {
	read, err := readPair(c.certFile, c.keyFile)
	if err == nil && read.equal(c.read) {
		c.trouble = ""
		return
	}
	var next *tls.Certificate
	if err == nil {
		next, err = read.parse()
	}
	if err != nil {
		c.failures.Add(1)
		if c.trouble != err.Error() {
			c.trouble = err.Error()
			c.log.Error("the new TLS certificate cannot be used; the one before serves on", "err", err)
		}
		return
	}
	c.read, c.trouble = read, ""
	c.serving.Store(next)
	c.log.Info("a new TLS certificate serves", "expires", next.Leaf.NotAfter)
}

// Register adds two metrics of the certificate that the listener of this name serves:
// sluice_tls_certificate_expiry_seconds, the seconds that it is still valid for, negative when it has expired, and
// sluice_tls_certificate_reload_failures_total, how often its files were found changed and could not be used.
func (c *Certificate) Register(registry prometheus.Registerer, listener string) error {
	labels := prometheus.Labels{"listener": listener}
	return errors.Join(
		registry.Register(prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "sluice_tls_certificate_expiry_seconds", ConstLabels: labels,
			Help: "Seconds until the listener's TLS certificate expires; negative: it has.",
		}, func() float64 { return c.current().Leaf.NotAfter.Sub(c.now()).Seconds() })),
		registry.Register(prometheus.NewCounterFunc(prometheus.CounterOpts{
			Name: "sluice_tls_certificate_reload_failures_total", ConstLabels: labels,
			Help: "Looks at the files of the listener's TLS certificate that found new ones which cannot be used.",
		}, func() float64 { return float64(c.failures.Load()) })),
	)
}
