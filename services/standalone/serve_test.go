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
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/directory/filedir"
	"github.com/sluice-fhir/sluice/pkg/platform/envconfig"
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
		{"127.0.0.1", "/operator", "<a href=\"/operator/\">Found</a>.\n\n", 302},
		{"127.0.0.1", "/", "<a href=\"/operator/\">Found</a>.\n\n", 302},
		{"evil.example", "/", "unknown host name\n", 421},
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

func TestDataBases(t *testing.T) {
	t.Setenv("SLUICE_DATA_BASES", "https://b.example/fhir, https://c.example")
	parsed, err := parse([]string{"--state", "s", "--data-base", "https://a.example"}, io.Discard)
	want := []string{"https://a.example", "https://b.example/fhir", "https://c.example"}
	if err != nil || !slices.Equal(parsed.bases, want) {
		t.Errorf("bases %q, error %v", parsed.bases, err)
	}
	if _, err := parse([]string{"--state", "s", "--data-base", "a.example"}, io.Discard); !errors.As(err, new(usageError)) {
		t.Errorf("a base without a scheme: %v", err)
	}
	t.Setenv("SLUICE_DATA_BASES", "x")
	if _, err := parse([]string{"--state", "s"}, io.Discard); err == nil || !strings.Contains(err.Error(), "SLUICE_DATA_BASES") {
		t.Errorf("a variable without a URL: %v", err)
	}
}

// Active groups in files that are not read are named. Superseded versions and retired groups are not.
func TestGroupsThatAreNotRead(t *testing.T) {
	const bundle = `{"resourceType":"Bundle","type":"collection","entry":[{"resource":%s}]}`
	for name, test := range map[string]struct {
		files map[string]string
		want  []string
	}{
		"among others": {map[string]string{
			"Group.ndjson": `{"resourceType":"Group","id":"all","type":"person","actual":true,"meta":{"versionId":"1"}}
{"resourceType":"Group","id":"all","type":"person","actual":true,"meta":{"versionId":"2"}}
{"resourceType":"Group","id":"retired","type":"person","actual":true,"active":false}`,
			"Group.json":        "{\n \"resourceType\": \"Group\",\n \"id\": \"single\", \"type\": \"person\", \"actual\": true\n}",
			"Group-bundle.json": fmt.Sprintf(bundle, `{"resourceType":"Group","id":"inside","type":"person","actual":true}`),
		}, []string{"inside (Group-bundle.json)", "single (Group.json)"}},
		"refused as a resource": {map[string]string{
			"Group.ndjson":      `{"resourceType":"Group","id":"all","type":"person","actual":true}`,
			"Group-bundle.json": fmt.Sprintf(bundle, `{"resourceType":"Group","id":"inside","type":"person","actual":true,"Meta":1}`),
		}, []string{"inside (Group-bundle.json)"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			test.files["Patient.ndjson"] = `{"resourceType":"Patient","id":"1"}`
			for name, content := range test.files {
				if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			quiet := slog.New(slog.DiscardHandler)
			data := envconfig.Defaults[config.Source]()
			data.Dir = dir
			from, err := data.Open(t.Context(), quiet, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = from.Close() }()
			groups, err := filedir.OpenGroups(t.Context(), dir, nil, time.Now, quiet)
			if err != nil {
				t.Fatal(err)
			}
			found, err := survey(t.Context(), dir, from, groups)
			if err != nil || !slices.Equal(found.unread, test.want) {
				t.Errorf("not read: %q, error %v, want %q", found.unread, err, test.want)
			}
		})
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
