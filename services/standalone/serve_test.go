package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
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
	"github.com/sluice-fhir/sluice/services/adminui"
	"github.com/sluice-fhir/sluice/services/config"
	"github.com/sluice-fhir/sluice/services/ops"
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

// Metrics and the operator's page are served for names of this server only. All other paths reach the API unchanged.
func TestPrivatePaths(t *testing.T) {
	named := func(name string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(w, name+" "+r.URL.Path) })
	}
	page := adminui.New(adminui.Config{}, &ops.Operator{})
	handler := withPrivate(named("public"), named("private"), named("page"), page.AcceptsHost)
	for _, row := range []struct {
		host, path, want string
		code             int
	}{
		{"127.0.0.1:8080", "/metrics", "private /metrics", 200},
		{"[::1]:8080", "/metrics", "private /metrics", 200},
		{"localhost", "/metrics", "private /metrics", 200},
		{"evil.example", "/metrics", "unknown host name\n", 421},
		{"localhost.evil.example:8080", "/metrics", "unknown host name\n", 421},
		{"", "/metrics", "unknown host name\n", 421},
		{"127.0.0.1", "/metrics/", "public /metrics/", 200},
		{"127.0.0.1", "/debug/pprof/", "public /debug/pprof/", 200},
		{"127.0.0.1", "/readyz", "public /readyz", 200},
		{"127.0.0.1", "/operator/", "page /operator/", 200},
		{"[::1]", "/operator/jobs/x", "page /operator/jobs/x", 200},
		{"127.0.0.1", "/operator", "public /operator", 200},
		{"evil.example", "/fhir/metadata", "public /fhir/metadata", 200},
		{"127.0.0.1", "/fhir//Group/../x", "public /fhir//Group/../x", 200},
	} {
		request := httptest.NewRequest(http.MethodGet, row.path, nil)
		request.Host = row.host
		recorder := httptest.NewRecorder()
		handler.ServeHTTP(recorder, request)
		if got := recorder.Body.String(); recorder.Code != row.code || got != row.want {
			t.Errorf("%s of %q: %d %q, want %d %q", row.path, row.host, recorder.Code, got, row.code, row.want)
		}
	}
}

// With a public base URL there may be a proxy, through which every client appears local: metrics and the operator's page are
// not served then.
func TestWhereThePrivatePathsAreServed(t *testing.T) {
	for _, row := range []struct {
		baseURL, ip string
		want        bool
	}{
		{"", "127.0.0.1", true}, {"", "::1", true}, {"", "0.0.0.0", false}, {"", "::", false}, {"", "192.0.2.1", false},
		{"https://bulk.example.org/fhir", "127.0.0.1", false}, {"https://bulk.example.org/fhir", "192.0.2.1", false},
	} {
		if got := (options{baseURL: row.baseURL}).local(&net.TCPAddr{IP: net.ParseIP(row.ip)}); got != row.want {
			t.Errorf("%q on %s: %v, want %v", row.baseURL, row.ip, got, row.want)
		}
	}
}

func TestTrustedProxies(t *testing.T) {
	parsed, err := parse([]string{"--state", "s", "--trusted-proxy", "10.0.0.0/8,::1", "--trusted-proxy", "192.0.2.7"}, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(parsed.proxies); got != "[10.0.0.0/8 ::1/128 192.0.2.7/32]" {
		t.Errorf("proxies %s", got)
	}
	for _, bad := range []string{"", "proxy.example", "10.0.0.0/33", "10.0.0.1:80"} {
		if _, err := parse([]string{"--state", "s", "--trusted-proxy", bad}, io.Discard); err == nil {
			t.Errorf("%q is accepted", bad)
		}
	}
}

func TestRetention(t *testing.T) {
	for value, want := range map[string]time.Duration{"36h": 36 * time.Hour, "5": 0, "x": 0, "0s": 0, "-1h": 0} {
		parsed, err := parse([]string{"--state", "s", "--retention", value}, io.Discard)
		if want > 0 && (err != nil || parsed.retention != want) || want == 0 && err == nil {
			t.Errorf("%s: %s, %v", value, parsed.retention, err)
		}
	}
	if _, err := parse([]string{"--state", "s", "--retention", "5"}, io.Discard); !strings.Contains(err.Error(), "a unit, such as 168h") {
		t.Errorf("%v", err)
	}
}
