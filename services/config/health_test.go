package config_test

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/platform/envconfig"
	"github.com/sluice-fhir/sluice/pkg/platform/health"
	"github.com/sluice-fhir/sluice/pkg/platform/telemetry"
	"github.com/sluice-fhir/sluice/pkg/testenv"
	"github.com/sluice-fhir/sluice/services/config"
)

// serving starts the private listener of a service with these settings and returns its address. It is ready while down
// is nil.
func serving(t *testing.T, environ []string, down *atomic.Bool) string {
	t.Helper()
	var common config.Common
	if err := envconfig.Load(environ, &common); err != nil {
		t.Fatal(err)
	}
	registry := telemetry.NewRegistry()
	listeners, err := common.Listeners(slog.New(slog.DiscardHandler), registry)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := config.Listen(t.Context(), common.Private)
	if err != nil {
		t.Fatal(err)
	}
	checks := health.Checks{"store": func(context.Context) error {
		if down.Load() {
			return errors.New("down")
		}
		return nil
	}}
	part := config.HTTP("private listener", listener, health.Handler(checks, registry), listeners.Private)
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- part.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return listener.Addr().String()
}

// checkHealth runs a service with --check-health.
func checkHealth(t *testing.T, environ []string) error {
	t.Helper()
	return config.Run(t.Context(), "service", "", []string{"--check-health"}, environ, io.Discard,
		func(context.Context, struct{}, io.Writer) error {
			t.Error("the service was started")
			return nil
		})
}

func TestHealthIsAskedOfTheOwnPrivateListener(t *testing.T) {
	authority := testenv.NewAuthority(t)
	hour := time.Now().Add(time.Hour)
	named, namedKey := authority.Issue(hour, "sluice.internal").Files(t, t.TempDir())
	wild, wildKey := authority.Issue(hour, "*.internal").Files(t, t.TempDir())
	address, addressKey := authority.Issue(hour, "192.0.2.1").Files(t, t.TempDir())
	for name, settingsOf := range map[string]string{
		"plain":          "",
		"as the public":  "PRIVATE_TLS=true TLS_CERT_FILE=" + named + " TLS_KEY_FILE=" + namedKey,
		"for many names": "PRIVATE_TLS_CERT_FILE=" + wild + " PRIVATE_TLS_KEY_FILE=" + wildKey,
		"for an address": "PRIVATE_TLS_CERT_FILE=" + address + " PRIVATE_TLS_KEY_FILE=" + addressKey,
		"to clients with a certificate": "PRIVATE_TLS_CERT_FILE=" + named + " PRIVATE_TLS_KEY_FILE=" + namedKey +
			" PRIVATE_CLIENT_CA_FILE=" + authority.File(),
	} {
		t.Run(name, func(t *testing.T) {
			environ := settings(settingsOf)
			var down atomic.Bool
			at := serving(t, append(environ, "SLUICE_PRIVATE_ADDR=127.0.0.1:0"), &down)
			_, port, _ := strings.Cut(at, ":")
			// --check-health ignores all settings but those of the private listener.
			environ = append(environ, "SLUICE_REDIS_URL_FILE=/nowhere", "HOME=/nowhere")
			for _, addr := range []string{at, ":" + port, "0.0.0.0:" + port, "[::]:" + port} {
				if err := checkHealth(t, append(environ, "SLUICE_PRIVATE_ADDR="+addr)); err != nil {
					t.Errorf("%s: %v", addr, err)
				}
			}
		})
	}
}

func TestHealthTellsWhatIsWrong(t *testing.T) {
	authority := testenv.NewAuthority(t)
	hour := time.Now().Add(time.Hour)
	cert, key := authority.Issue(hour, "sluice.internal").Files(t, t.TempDir())
	other, otherKey := authority.Issue(hour, "sluice.internal").Files(t, t.TempDir())
	stranger, strangerKey := testenv.NewAuthority(t).Issue(hour, "sluice.internal").Files(t, t.TempDir())
	pair := func(cert, key string) string { return "PRIVATE_TLS_CERT_FILE=" + cert + " PRIVATE_TLS_KEY_FILE=" + key }
	var up, down atomic.Bool
	down.Store(true)
	plain := settings("PRIVATE_ADDR=127.0.0.1:0")
	ready, unready := serving(t, plain, &up), serving(t, plain, &down)
	secure := serving(t, append(plain, settings(pair(cert, key))...), &up)
	choosy := serving(t, append(plain, settings(pair(stranger, strangerKey)+" PRIVATE_CLIENT_CA_FILE="+authority.File())...), &up)
	for about, want := range map[string]string{
		"PRIVATE_ADDR=" + ready:    "",
		"PRIVATE_ADDR=" + unready:  "answers 503",
		"":                         "SLUICE_PRIVATE_ADDR",
		"PRIVATE_ADDR=127.0.0.1:0": "SLUICE_PRIVATE_ADDR",
		"PRIVATE_ADDR=nonsense":    "SLUICE_PRIVATE_ADDR",
		"PRIVATE_ADDR=127.0.0.1:1": "does not answer",
		"PRIVATE_ADDR=" + secure:   "answers 400", // plain HTTP to a TLS listener
		"PRIVATE_ADDR=" + ready + " " + pair(cert, key):              "does not answer",
		"PRIVATE_ADDR=" + secure + " " + pair(cert, key):             "",
		"PRIVATE_ADDR=" + secure + " " + pair(other, otherKey):       "does not answer", // another certificate of the authority
		"PRIVATE_ADDR=" + choosy + " " + pair(stranger, strangerKey): "does not answer", // which the listener does not take
		"PRIVATE_ADDR=" + secure + " " + pair("/nowhere", key):       "SLUICE_PRIVATE_TLS_CERT_FILE",
		"PRIVATE_ADDR=" + ready + " PRIVATE_NONSENSE=1":              "SLUICE_PRIVATE_NONSENSE",
	} {
		err := checkHealth(t, settings(about))
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", about, err, want)
		}
	}
}

func TestHealthIsNotThatOfWhomARedirectNames(t *testing.T) {
	var up atomic.Bool
	ready := serving(t, settings("PRIVATE_ADDR=127.0.0.1:0"), &up)
	listener, err := config.Listen(t.Context(), "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: http.RedirectHandler("http://"+ready+"/readyz", http.StatusFound), ReadHeaderTimeout: time.Second}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(listener) }()
	t.Cleanup(func() { _ = server.Close(); <-ended })
	if err := checkHealth(t, settings("PRIVATE_ADDR="+listener.Addr().String())); err == nil || !strings.Contains(err.Error(), "302") {
		t.Errorf("%v, want an error about status 302", err)
	}
}
