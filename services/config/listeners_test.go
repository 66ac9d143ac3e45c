package config_test

import (
	"context"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/platform/health"
	"github.com/sluice-fhir/sluice/pkg/platform/httpserver"
	"github.com/sluice-fhir/sluice/pkg/platform/telemetry"
	"github.com/sluice-fhir/sluice/services/config"
)

// The / of a private port lists its paths, and each of them is served.
func TestPrivatePortListsItsPaths(t *testing.T) {
	listener, err := config.Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	handler := http.NewServeMux()
	handler.HandleFunc("/scale", func(http.ResponseWriter, *http.Request) {})
	handler.Handle("/", health.Handler(nil, telemetry.NewRegistry()))
	part := config.PrivateHTTP(listener, handler, httpserver.Options{Log: slog.New(slog.DiscardHandler)}, "/scale")
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- part.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	get := func(path string) (status int, body string) {
		t.Helper()
		resp, err := http.Get("http://" + listener.Addr().String() + path) //nolint:noctx // a test
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(text)
	}
	status, index := get("/")
	if status != http.StatusOK {
		t.Errorf("/: %d", status)
	}
	for _, path := range []string{"/scale", "/livez", "/readyz", "/metrics", "/debug/pprof/"} {
		if !strings.Contains(index, `<a href="`+path+`">`) {
			t.Errorf("/ does not list %s:\n%s", path, index)
		}
		if status, _ := get(path); status != http.StatusOK {
			t.Errorf("%s: %d", path, status)
		}
	}
	if status, _ := get("/none"); status != http.StatusNotFound {
		t.Errorf("/none: %d", status)
	}
}
