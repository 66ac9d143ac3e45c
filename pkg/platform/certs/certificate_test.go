package certs_test

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/sluice-fhir/sluice/pkg/platform/certs"
	"github.com/sluice-fhir/sluice/pkg/platform/telemetry"
	"github.com/sluice-fhir/sluice/pkg/testenv"
)

// must ends the test after an error.
func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// fakeClock is set by the test.
type fakeClock struct{ at time.Time }

func (c *fakeClock) now() time.Time { return c.at }

// presented returns the certificate that a client receives.
func presented(t *testing.T, c *certs.Certificate) []byte {
	t.Helper()
	got, err := c.Get(nil)
	must(t, err)
	return got.Certificate[0]
}

func der(t *testing.T, c testenv.Certificate) []byte {
	t.Helper()
	block, _ := pem.Decode(c.Cert)
	return block.Bytes
}

func put(t *testing.T, file string, content []byte) {
	t.Helper()
	must(t, os.WriteFile(file, content, 0o600))
}

func TestCertificateReload(t *testing.T) {
	authority := testenv.NewAuthority(t)
	soon := time.Now().Add(time.Hour).Truncate(time.Second)
	one, two := authority.Issue(soon, "localhost"), authority.Issue(soon.Add(time.Hour), "localhost")
	cert, key := one.Files(t, t.TempDir())
	clock := &fakeClock{time.Now()}
	var log bytes.Buffer
	served, err := certs.Open(cert, key, slog.New(slog.NewJSONHandler(&log, nil)), clock.now)
	must(t, err)
	registry := telemetry.NewRegistry()
	must(t, served.Register(registry, "public"))
	step := func(what string, wait time.Duration, want testenv.Certificate, lines int) {
		t.Helper()
		clock.at = clock.at.Add(wait)
		if !bytes.Equal(presented(t, served), der(t, want)) {
			t.Errorf("%s: the wrong certificate is presented", what)
		}
		if got := strings.Count(log.String(), "\n"); got != lines {
			t.Errorf("%s: logged %d lines, want %d: %s", what, got, lines, &log)
		}
	}
	put(t, cert, two.Cert) // a program that writes one file after the other
	step("before the interval", time.Second-1, one, 0)
	step("new certificate, old key", 1, one, 1)
	step("still the old key", time.Second, one, 1)
	put(t, key, two.Key)
	step("new pair, before the interval", time.Second-1, one, 1)
	step("new pair", 1, two, 2)
	put(t, cert, two.Cert[:len(two.Cert)/2])
	step("truncated certificate", time.Second, two, 3)
	must(t, os.Remove(key))
	step("key removed", time.Second, two, 4)
	two.Files(t, filepath.Dir(cert))
	step("restored", time.Second, two, 4)
	must(t, os.Remove(key))
	step("key removed again", time.Second, two, 5)
	if strings.Contains(log.String(), filepath.Base(key)) || strings.Contains(log.String(), "PRIVATE KEY") {
		t.Errorf("file names or contents are logged: %s", &log)
	}

	want := `
# HELP sluice_tls_certificate_reload_failures_total Failed reloads of the listener's TLS certificate files.
# TYPE sluice_tls_certificate_reload_failures_total counter
sluice_tls_certificate_reload_failures_total{listener="public"} 5
`
	err = testutil.GatherAndCompare(registry, strings.NewReader(want), "sluice_tls_certificate_reload_failures_total")
	if err != nil {
		t.Error(err)
	}
	clock.at = soon.Add(time.Hour + 30*time.Second)
	want = `
# HELP sluice_tls_certificate_expiry_seconds Seconds until the listener's TLS certificate expires; negative after expiry.
# TYPE sluice_tls_certificate_expiry_seconds gauge
sluice_tls_certificate_expiry_seconds{listener="public"} -30
`
	err = testutil.GatherAndCompare(registry, strings.NewReader(want), "sluice_tls_certificate_expiry_seconds")
	if err != nil {
		t.Error(err)
	}
}

// Kubernetes mounts a secret as links into a linked folder, and replaces the folder's link.
func TestCertificateReloadBehindLinks(t *testing.T) {
	authority := testenv.NewAuthority(t)
	one, two := authority.Issue(time.Now().Add(time.Hour), "localhost"), authority.Issue(time.Now().Add(time.Hour), "localhost")
	mount := t.TempDir()
	for name, issued := range map[string]testenv.Certificate{"..1": one, "..2": two} {
		must(t, os.Mkdir(filepath.Join(mount, name), 0o700))
		issued.Files(t, filepath.Join(mount, name))
	}
	cert, key := filepath.Join(mount, "tls.crt"), filepath.Join(mount, "tls.key")
	err := errors.Join(os.Symlink("..1", filepath.Join(mount, "..data")),
		os.Symlink("..data/tls.crt", cert), os.Symlink("..data/tls.key", key))
	must(t, err)
	clock := &fakeClock{time.Now()}
	served, err := certs.Open(cert, key, slog.New(slog.DiscardHandler), clock.now)
	if err != nil || !bytes.Equal(presented(t, served), der(t, one)) {
		t.Fatalf("the first certificate: %v", err)
	}
	err = errors.Join(os.Symlink("..2", filepath.Join(mount, "..new")),
		os.Rename(filepath.Join(mount, "..new"), filepath.Join(mount, "..data")))
	must(t, err)
	clock.at = clock.at.Add(time.Second)
	if !bytes.Equal(presented(t, served), der(t, two)) {
		t.Error("the replaced link was not followed")
	}
}

func TestOpenErrors(t *testing.T) {
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
		_, err := certs.Open(cert, key, slog.New(slog.DiscardHandler), time.Now)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%v, want an error about %q without the file name or content", err, want)
		}
	}
}

func TestLoadPoolAndRoots(t *testing.T) {
	authority := testenv.NewAuthority(t)
	leaf, err := x509.ParseCertificate(der(t, authority.Issue(time.Now().Add(time.Hour), "h")))
	must(t, err)
	none := filepath.Join(t.TempDir(), "hunter2")
	put(t, none, []byte("hunter2"))
	for name, read := range map[string]func(string) (*x509.CertPool, error){
		"pool": certs.LoadPool, "roots": certs.LoadRoots,
	} {
		pool, err := read(authority.File())
		must(t, err)
		if _, err := leaf.Verify(x509.VerifyOptions{Roots: pool}); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for file, want := range map[string]string{none: "no PEM certificate", none + "2": "cannot be read"} {
			if _, err := read(file); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
				t.Errorf("%s: %v, want an error about %q without the file name or content", name, err, want)
			}
		}
	}
}
