package tokenapi_test

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/alicebob/miniredis/v2"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/sluice-fhir/sluice/pkg/audit"
	"github.com/sluice-fhir/sluice/pkg/authstore"
	"github.com/sluice-fhir/sluice/services/auth/clients"
	"github.com/sluice-fhir/sluice/services/auth/tokenapi"
)

// FuzzForm: every body gets a 4xx response of RFC 6749, because no client is registered.
func FuzzForm(f *testing.F) {
	store, err := authstore.Open("redis://"+miniredis.RunT(f).Addr(), nil, nil)
	must(f, err)
	defer store.Close()
	cfg := tokenapi.Defaults()
	cfg.TokenURL, cfg.Audience, cfg.Logger = "https://auth.example/token", audience, slog.New(slog.NewTextHandler(io.Discard, nil))
	cfg.Limits.PerAddress, cfg.Limits.PerClient = 1<<30, 1<<30
	events, err := audit.Open(audit.Config{Path: filepath.Join(f.TempDir(), "audit.ndjson"), Process: "auth"})
	must(f, err)
	defer events.Close()
	service, err := tokenapi.New(cfg, tokenapi.Deps{
		Store: store, Clients: clients.New(nil, store), Audit: events, Registry: prometheus.NewRegistry(),
	})
	must(f, err)
	defer service.Close()
	for _, seed := range []string{
		"", "&&=&", "grant_type=client_credentials", "grant_type=client_credentials&scope=system%2F*.rs&client_assertion_type=" +
			"urn%3Aietf%3Aparams%3Aoauth%3Aclient-assertion-type%3Ajwt-bearer&client_assertion=e30.e30.e30", "a=%zz", "%ff=", "a=1&a=2",
	} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, body string) {
		r := httptest.NewRequest(http.MethodPost, "/token", strings.NewReader(body))
		r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		answer := httptest.NewRecorder()
		service.ServeHTTP(answer, r)
		if answer.Code < 400 || answer.Code > 499 || !strings.HasPrefix(answer.Body.String(), `{"error":"`) {
			t.Errorf("%d %s for %q", answer.Code, answer.Body, body)
		}
	})
}
