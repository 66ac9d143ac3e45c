package platform_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/sluice-fhir/sluice/pkg/platform"
	"github.com/sluice-fhir/sluice/pkg/testenv"
)

// hand is a clock that is set by hand.
type hand struct{ at time.Time }

func (h *hand) now() time.Time { return h.at }

// shown is the certificate that a client gets to see.
func shown(t *testing.T, c *platform.Certificate) []byte {
	t.Helper()
	got, err := c.Get(nil)
	if err != nil {
		t.Fatal(err)
	}
	return got.Certificate[0]
}

func der(t *testing.T, c testenv.Certificate) []byte {
	t.Helper()
	block, _ := pem.Decode(c.Cert)
	return block.Bytes
}

func put(t *testing.T, file string, content []byte) {
	t.Helper()
	if err := os.WriteFile(file, content, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestACertificateIsReadAgain(t *testing.T) {
	authority := testenv.NewAuthority(t)
	soon := time.Now().Add(time.Hour).Truncate(time.Second)
	one, two := authority.Issue(soon, "localhost"), authority.Issue(soon.Add(time.Hour), "localhost")
	cert, key := one.Files(t, t.TempDir())
	clock := &hand{time.Now()}
	var log bytes.Buffer
	served, err := platform.OpenCertificate(cert, key, slog.New(slog.NewJSONHandler(&log, nil)), clock.now)
	if err != nil {
		t.Fatal(err)
	}
	registry := platform.NewRegistry()
	if err := served.Register(registry, "public"); err != nil {
		t.Fatal(err)
	}
	step := func(what string, wait time.Duration, want testenv.Certificate, lines int) {
		t.Helper()
		clock.at = clock.at.Add(wait)
		if !bytes.Equal(shown(t, served), der(t, want)) {
			t.Errorf("%s: the other certificate serves", what)
		}
		if got := strings.Count(log.String(), "\n"); got != lines {
			t.Errorf("%s: %d lines are logged, want %d: %s", what, got, lines, &log)
		}
	}
	put(t, cert, two.Cert) // as if by a program that writes one file after the other
	step("at once", time.Second-1, one, 0)
	step("without its key", 1, one, 1)
	step("still without", time.Second, one, 1)
	put(t, key, two.Key)
	step("whole, within the second", time.Second-1, one, 1)
	step("whole", 1, two, 2)
	put(t, cert, two.Cert[:len(two.Cert)/2])
	step("half-written", time.Second, two, 3)
	if err := os.Remove(key); err != nil {
		t.Fatal(err)
	}
	step("without a file", time.Second, two, 4)
	two.Files(t, filepath.Dir(cert))
	step("as it was", time.Second, two, 4)
	if err := os.Remove(key); err != nil {
		t.Fatal(err)
	}
	step("without a file once more", time.Second, two, 5)
	if strings.Contains(log.String(), filepath.Base(key)) || strings.Contains(log.String(), "PRIVATE KEY") {
		t.Errorf("names or content are logged: %s", &log)
	}

	want := `
# HELP sluice_tls_certificate_reload_failures_total Looks at the files of the listener's TLS certificate that found new ones which cannot be used.
# TYPE sluice_tls_certificate_reload_failures_total counter
sluice_tls_certificate_reload_failures_total{listener="public"} 5
`
	err = testutil.GatherAndCompare(registry, strings.NewReader(want), "sluice_tls_certificate_reload_failures_total")
	if err != nil {
		t.Error(err)
	}
	clock.at = soon.Add(time.Hour + 30*time.Second)
	want = `
# HELP sluice_tls_certificate_expiry_seconds Seconds until the listener's TLS certificate expires; negative: it has.
# TYPE sluice_tls_certificate_expiry_seconds gauge
sluice_tls_certificate_expiry_seconds{listener="public"} -30
`
	err = testutil.GatherAndCompare(registry, strings.NewReader(want), "sluice_tls_certificate_expiry_seconds")
	if err != nil {
		t.Error(err)
	}
}

// Kubernetes mounts a secret as links into a folder that is itself behind a link, and moves that one.
func TestACertificateBehindLinksIsReadAgain(t *testing.T) {
	authority := testenv.NewAuthority(t)
	one, two := authority.Issue(time.Now().Add(time.Hour), "localhost"), authority.Issue(time.Now().Add(time.Hour), "localhost")
	mount := t.TempDir()
	for name, issued := range map[string]testenv.Certificate{"..1": one, "..2": two} {
		if err := os.Mkdir(filepath.Join(mount, name), 0o700); err != nil {
			t.Fatal(err)
		}
		issued.Files(t, filepath.Join(mount, name))
	}
	cert, key := filepath.Join(mount, "tls.crt"), filepath.Join(mount, "tls.key")
	err := errors.Join(os.Symlink("..1", filepath.Join(mount, "..data")),
		os.Symlink("..data/tls.crt", cert), os.Symlink("..data/tls.key", key))
	if err != nil {
		t.Fatal(err)
	}
	clock := &hand{time.Now()}
	served, err := platform.OpenCertificate(cert, key, slog.New(slog.DiscardHandler), clock.now)
	if err != nil || !bytes.Equal(shown(t, served), der(t, one)) {
		t.Fatalf("the first certificate: %v", err)
	}
	err = errors.Join(os.Symlink("..2", filepath.Join(mount, "..new")),
		os.Rename(filepath.Join(mount, "..new"), filepath.Join(mount, "..data")))
	if err != nil {
		t.Fatal(err)
	}
	clock.at = clock.at.Add(time.Second)
	if !bytes.Equal(shown(t, served), der(t, two)) {
		t.Error("the moved link was not noticed")
	}
}

func TestOpenCertificateSaysWhatIsWrong(t *testing.T) {
	authority := testenv.NewAuthority(t)
	one, two := authority.Issue(time.Now().Add(time.Hour)), authority.Issue(time.Now().Add(time.Hour))
	for want, broken := range map[string]testenv.Certificate{
		"certificate cannot be read": {Key: one.Key},
		"key cannot be read":         {Cert: one.Cert},
		"cannot be used together":    {Cert: one.Cert, Key: two.Key},
		"in certificate input":       {Cert: []byte("hunter2"), Key: one.Key},
		"in key input":               {Cert: one.Cert, Key: []byte("hunter2")},
	} {
		dir := t.TempDir()
		cert, key := filepath.Join(dir, "hunter2.crt"), filepath.Join(dir, "hunter2.key")
		if broken.Cert != nil {
			put(t, cert, broken.Cert)
		}
		if broken.Key != nil {
			put(t, key, broken.Key)
		}
		_, err := platform.OpenCertificate(cert, key, slog.New(slog.DiscardHandler), time.Now)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%v, want an error about %q that quotes nothing", err, want)
		}
	}
}

// secured serves the handler by TLS until the test ends and returns the address.
func secured(t *testing.T, issued testenv.Certificate, clients *x509.CertPool, handler http.Handler, options ...platform.Option) string {
	t.Helper()
	cert, key := issued.Files(t, t.TempDir())
	served, err := platform.OpenCertificate(cert, key, slog.New(slog.DiscardHandler), time.Now)
	if err != nil {
		t.Fatal(err)
	}
	options = append(options, platform.WithTLS(platform.ServerTLS(served, clients)))
	return listening(t, handler, options...)
}

// listening serves the handler until the test ends and returns the address.
func listening(t *testing.T, handler http.Handler, options ...platform.Option) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- platform.ServeHTTP(ctx, listener, handler, options...) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return listener.Addr().String()
}

func protocol(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, r.Proto) }

func TestTLSListener(t *testing.T) {
	authority, stranger := testenv.NewAuthority(t), testenv.NewAuthority(t)
	valid := time.Now().Add(time.Hour)
	server, ours, theirs := authority.Issue(valid, "127.0.0.1"), authority.Issue(valid), stranger.Issue(valid)
	expired := authority.Issue(time.Now().Add(-time.Hour))
	open := secured(t, server, nil, http.HandlerFunc(protocol))
	closed := secured(t, server, authority.Pool(), http.HandlerFunc(protocol))
	with := func(change func(*tls.Config)) *tls.Config {
		config := &tls.Config{RootCAs: authority.Pool(), NextProtos: []string{"h2", "http/1.1"}}
		change(config)
		return config
	}
	for name, row := range map[string]struct {
		addr   string
		config *tls.Config
		want   string // what is answered; "": nothing
	}{
		"1.3":            {open, with(func(*tls.Config) {}), "HTTP/2.0"},
		"1.2":            {open, with(func(c *tls.Config) { c.MaxVersion = tls.VersionTLS12 }), "HTTP/2.0"},
		"without HTTP/2": {open, with(func(c *tls.Config) { c.NextProtos = nil }), "HTTP/1.1"},
		"1.1": {open, with(func(c *tls.Config) {
			c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
		}), ""},
		"CBC": {open, with(func(c *tls.Config) {
			c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}
			c.NextProtos = nil // in HTTP/2 it would be refused anyway
		}), ""},
		"a client of ours":    {closed, with(func(c *tls.Config) { c.Certificates = []tls.Certificate{ours.TLS(t)} }), "HTTP/2.0"},
		"without certificate": {closed, with(func(*tls.Config) {}), ""},
		"of another authority": {closed, with(func(c *tls.Config) {
			theirs := theirs.TLS(t)
			c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &theirs, nil }
		}), ""},
		"a client that expired": {closed, with(func(c *tls.Config) { c.Certificates = []tls.Certificate{expired.TLS(t)} }), ""},
	} {
		transport := &http.Transport{TLSClientConfig: row.config, ForceAttemptHTTP2: row.config.NextProtos != nil}
		var body []byte
		response, err := (&http.Client{Transport: transport}).Get("https://" + row.addr + "/")
		if err == nil {
			body, err = io.ReadAll(response.Body)
			err = errors.Join(err, response.Body.Close())
		}
		if string(body) != row.want || (err == nil) != (row.want != "") {
			t.Errorf("%s: %q, %v, want %q", name, body, err, row.want)
		}
		transport.CloseIdleConnections()
	}
	response, err := http.Get("http://" + open + "/")
	if err != nil {
		t.Fatal(err)
	}
	if err := response.Body.Close(); err != nil || response.StatusCode != http.StatusBadRequest {
		t.Errorf("plain HTTP: %s, %v, want 400", response.Status, err)
	}
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
}

func TestAuthorities(t *testing.T) {
	authority := testenv.NewAuthority(t)
	leaf, err := x509.ParseCertificate(der(t, authority.Issue(time.Now().Add(time.Hour), "h")))
	if err != nil {
		t.Fatal(err)
	}
	none := filepath.Join(t.TempDir(), "hunter2")
	put(t, none, []byte("hunter2"))
	for name, read := range map[string]func(string) (*x509.CertPool, error){
		"authorities": platform.Authorities, "roots": platform.Roots,
	} {
		pool, err := read(authority.File())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: pool}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for file, want := range map[string]string{none: "no PEM certificate", none + "2": "cannot be read"} {
			if _, err := read(file); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("%s: %v, want an error about %q that quotes nothing", name, err, want)
			}
		}
	}
}
