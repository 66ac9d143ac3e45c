package command

import (
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestHealth(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/ill":
			w.WriteHeader(http.StatusServiceUnavailable)
		case "/elsewhere":
			http.Redirect(w, r, "/well", http.StatusFound)
		case "/never":
			<-r.Context().Done()
		}
	}))
	defer server.Close()
	for path, want := range map[string]string{"/well": "", "/ill": "answers 503", "/elsewhere": "answers 302", "/never": "does not answer"} {
		wantCode := ExitFailure
		if want == "" {
			wantCode = ExitGood
		}
		code, stdout, stderr := run(t, "health", "--timeout", "200ms", server.URL+path)
		if code != wantCode || stdout != "" || !strings.Contains(stderr, want) || (want == "") != (stderr == "") {
			t.Errorf("%s: %d %q %q", path, code, stdout, stderr)
		}
	}
	do(t, ExitGood, `"healthy": true`, "health", "--json", server.URL+"/well?secret=x")
	do(t, ExitFailure, server.URL+"/ill: ", "health", server.URL+"/ill?secret=x")
	for _, nonsense := range []string{"", "nonsense", "ftp://host/", "http://%zz"} {
		do(t, ExitFailure, "not a URL", "health", nonsense)
	}
}

func TestCertificateServesTheNamesAndNoOther(t *testing.T) {
	dir := t.TempDir()
	args := []string{"admin", "certificate", "--out", dir, "--name", "localhost,auth", "--name", "127.0.0.1"}
	do(t, ExitGood, "", args...)
	for name, mode := range map[string]os.FileMode{"ca.pem": 0o644, "tls.pem": 0o644, "tls.key": 0o600} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v %v", name, info, err)
		}
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "tls.pem"), filepath.Join(dir, "tls.key"))
	must(t, err)
	authority, err := os.ReadFile(filepath.Join(dir, "ca.pem"))
	must(t, err)
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(authority) {
		t.Fatal("ca.pem holds no certificate")
	}
	for name, good := range map[string]bool{"localhost": true, "auth": true, "127.0.0.1": true, "api": false, "127.0.0.2": false} {
		_, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, DNSName: name})
		if (err == nil) != good {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := pair.Leaf.Verify(x509.VerifyOptions{Roots: roots, CurrentTime: time.Now().Add(366 * 24 * time.Hour)}); err == nil {
		t.Error("the certificate is valid after its expiry")
	}

	// Existing files are kept, and a failed run leaves no files.
	do(t, ExitFailure, "ca.pem", args...)
	must(t, os.Remove(filepath.Join(dir, "ca.pem")))
	do(t, ExitFailure, "tls.pem", args...)
	if _, err := os.Stat(filepath.Join(dir, "ca.pem")); err == nil {
		t.Error("a failed run left the authority's certificate")
	}
	if code, _, _ := run(t, "admin", "certificate", "--out", dir, "--name", "x", "--valid", "0s"); code != ExitUsage {
		t.Errorf("zero validity: exit %d", code)
	}
}
