package main

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/platform/telemetry"
	"github.com/sluice-fhir/sluice/pkg/testenv"
	"github.com/sluice-fhir/sluice/services/config"
)

// The listener uses the certificate of the flags, and the base URL is https.
func TestServing(t *testing.T) {
	authority := testenv.NewAuthority(t)
	cert, key := authority.Issue(time.Now().Add(time.Hour), "127.0.0.1").Files(t, t.TempDir())
	parsed, err := parse([]string{"--state", t.TempDir(), "--tls-cert", cert, "--tls-key", key}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	serving, scheme, err := parsed.serving(slog.New(slog.DiscardHandler), telemetry.NewRegistry())
	if err != nil || scheme != "https" {
		t.Fatalf("scheme %q, error %v", scheme, err)
	}
	listener, err := config.Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- config.HTTP("listener", listener, http.NotFoundHandler(), serving).Run(ctx) }()
	client := http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: authority.Pool()}, DisableKeepAlives: true,
	}}
	response, err := client.Get(scheme + "://" + listener.Addr().String() + "/")
	if err != nil {
		t.Fatal(err)
	}
	stop()
	if err := errors.Join(response.Body.Close(), <-served); err != nil {
		t.Error(err)
	}
	parsed.tlsKey = cert
	_, _, err = parsed.serving(slog.New(slog.DiscardHandler), telemetry.NewRegistry())
	if err == nil || !strings.Contains(err.Error(), "--tls-key") {
		t.Errorf("a file without a key: %v", err)
	}
	if _, err := parse([]string{"--state", "s", "--tls-cert", cert}, io.Discard); err == nil || !strings.Contains(err.Error(), "--tls-key") {
		t.Errorf("a certificate without a key: %v", err)
	}
}

// Metrics and the operator's page are served on loopback addresses only. All other paths reach the API unchanged.
func TestPrivatePathsNeedALoopbackAddress(t *testing.T) {
	named := func(name string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, name+" "+r.URL.Path) })
	}
	for _, row := range []struct{ ip, path, want string }{
		{"127.0.0.1", "/metrics", "private /metrics"},
		{"::1", "/metrics", "private /metrics"},
		{"127.0.0.1", "/metrics/", "public /metrics/"},
		{"127.0.0.1", "/debug/pprof/", "public /debug/pprof/"},
		{"127.0.0.1", "/readyz", "public /readyz"},
		{"127.0.0.1", "/operator/", "page /operator/"},
		{"::1", "/operator/jobs/x", "page /operator/jobs/x"},
		{"127.0.0.1", "/operator", "public /operator"},
		{"0.0.0.0", "/operator/", "public /operator/"},
		{"192.0.2.1", "/operator/", "public /operator/"},
		{"127.0.0.1", "/fhir//Group/../x", "public /fhir//Group/../x"},
		{"0.0.0.0", "/metrics", "public /metrics"},
		{"::", "/metrics", "public /metrics"},
		{"192.0.2.1", "/metrics", "public /metrics"},
	} {
		handler := withPrivate(&net.TCPAddr{IP: net.ParseIP(row.ip)}, named("public"), named("private"), named("page"))
		recorder := httptest.NewRecorder()
		handler.ServeHTTP(recorder, httptest.NewRequest(http.MethodGet, row.path, nil))
		if got := recorder.Body.String(); recorder.Code != http.StatusOK || got != row.want {
			t.Errorf("%s on %s: %d %q, want %q", row.path, row.ip, recorder.Code, got, row.want)
		}
	}
	recorder := httptest.NewRecorder()
	withPrivate(&net.TCPAddr{IP: net.IPv6loopback}, named("public"), named("private"), nil).
		ServeHTTP(recorder, httptest.NewRequest(http.MethodGet, "/operator/", nil))
	if got := recorder.Body.String(); got != "public /operator/" {
		t.Errorf("without a page: %q", got)
	}
}
