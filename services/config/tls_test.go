package config_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/platform/envconfig"
	"github.com/sluice-fhir/sluice/pkg/platform/health"
	"github.com/sluice-fhir/sluice/pkg/platform/httpserver"
	"github.com/sluice-fhir/sluice/pkg/platform/telemetry"
	"github.com/sluice-fhir/sluice/pkg/testenv"
	"github.com/sluice-fhir/sluice/services/config"
)

// settings turns "NAME=value ..." into an environment.
func settings(text string) []string {
	var environ []string
	for entry := range strings.FieldsSeq(text) {
		environ = append(environ, "SLUICE_"+entry)
	}
	return environ
}

func TestListenersAreChecked(t *testing.T) {
	authority := testenv.NewAuthority(t)
	valid := time.Now().Add(time.Hour)
	cert, key := authority.Issue(valid, "h").Files(t, t.TempDir())
	_, other := authority.Issue(valid, "h").Files(t, t.TempDir())
	ca, none := authority.File(), filepath.Join(t.TempDir(), "hunter2")
	pair, private := "TLS_CERT_FILE="+cert+" TLS_KEY_FILE="+key, "PRIVATE_TLS_CERT_FILE="+cert+" PRIVATE_TLS_KEY_FILE="+key
	for text, want := range map[string]string{ // words that the error must contain; "": no error
		"":                             "",
		pair:                           "",
		private:                        "",
		"CA_FILE=" + ca:                "",
		pair + " " + private:           "",
		pair + " PRIVATE_TLS=true":     "",
		"TLS_CERT_FILE=" + cert:        "SLUICE_TLS_CERT_FILE SLUICE_TLS_KEY_FILE",
		"TLS_KEY_FILE=" + key:          "SLUICE_TLS_CERT_FILE SLUICE_TLS_KEY_FILE",
		"PRIVATE_TLS_KEY_FILE=" + key:  "SLUICE_PRIVATE_TLS_CERT_FILE SLUICE_PRIVATE_TLS_KEY_FILE",
		"PRIVATE_TLS=true":             "SLUICE_PRIVATE_TLS SLUICE_TLS_CERT_FILE",
		"PRIVATE_CLIENT_CA_FILE=" + ca: "SLUICE_PRIVATE_CLIENT_CA_FILE SLUICE_PRIVATE_TLS",
		"MAX_CONNECTIONS=0":            "SLUICE_MAX_CONNECTIONS",
		"CA_FILE=" + none:              "SLUICE_CA_FILE",
		"CA_FILE=" + key:               "SLUICE_CA_FILE certificate",
		"CA_FILE=" + none + " PRIVATE_TLS=true MAX_CONNECTIONS=-1":    "SLUICE_CA_FILE SLUICE_PRIVATE_TLS SLUICE_MAX_CONNECTIONS",
		"TLS_KEY_FILE=" + key + " TLS_CERT_FILE=" + none:              "SLUICE_TLS_CERT_FILE certificate",
		"TLS_CERT_FILE=" + cert + " TLS_KEY_FILE=" + none:             "SLUICE_TLS_KEY_FILE key",
		"TLS_CERT_FILE=" + cert + " TLS_KEY_FILE=" + other:            "SLUICE_TLS_KEY_FILE together",
		pair + " PRIVATE_TLS=true PRIVATE_CLIENT_CA_FILE=" + none:     "SLUICE_PRIVATE_CLIENT_CA_FILE",
		private + " PRIVATE_CLIENT_CA_FILE=" + ca:                     "",
		pair + " PRIVATE_TLS_CERT_FILE=" + cert:                       "SLUICE_PRIVATE_TLS_KEY_FILE",
		pair + " PRIVATE_TLS_CERT_FILE=a PRIVATE_TLS_KEY_FILE=" + key: "SLUICE_PRIVATE_TLS_CERT_FILE",
	} {
		var common config.Common
		err := envconfig.Load(settings(text), &common)
		if (err == nil) != (want == "") {
			t.Errorf("%s: %v, want an error about %q", text, err, want)
			continue
		}
		for word := range strings.FieldsSeq(want) {
			if !strings.Contains(err.Error(), word) {
				t.Errorf("%s: %v, want an error about %q", text, err, word)
			}
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: a value is quoted: %v", text, err)
		}
	}
}

// get sends a request over https, with a client certificate if one is given, and returns the status.
func get(t *testing.T, addr string, authority *testenv.Authority, certificates ...tls.Certificate) (int, error) {
	t.Helper()
	transport := &http.Transport{
		TLSClientConfig:   &tls.Config{RootCAs: authority.Pool(), Certificates: certificates},
		DisableKeepAlives: true,
	}
	response, err := (&http.Client{Transport: transport}).Get("https://" + addr + "/livez")
	if err != nil {
		return 0, err
	}
	return response.StatusCode, response.Body.Close()
}

// Both listeners use the current certificate, and the private one requires a client certificate.
func TestListeners(t *testing.T) {
	authority, operators := testenv.NewAuthority(t), testenv.NewAuthority(t)
	valid := time.Now().Add(time.Hour)
	cert, key := authority.Issue(valid, "127.0.0.1").Files(t, t.TempDir())
	var common config.Common
	err := envconfig.Load(settings("TLS_CERT_FILE="+cert+" TLS_KEY_FILE="+key+" PRIVATE_TLS=true PRIVATE_CLIENT_CA_FILE="+
		operators.File()), &common)
	if err != nil {
		t.Fatal(err)
	}
	registry := telemetry.NewRegistry()
	listeners, err := common.Listeners(slog.New(slog.DiscardHandler), registry)
	if err != nil {
		t.Fatal(err)
	}
	serve := func(options httpserver.Options) string {
		listener, err := config.Listen(t.Context(), "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(context.Background())
		served := make(chan error, 1)
		part := config.HTTP("listener", listener, health.Handler(nil, registry), options)
		go func() { served <- part.Run(ctx) }()
		t.Cleanup(func() {
			stop()
			if err := <-served; err != nil {
				t.Error(err)
			}
		})
		return listener.Addr().String()
	}
	public, private := serve(listeners.Public), serve(listeners.Private)
	operator := operators.Issue(valid).TLS(t)
	for name, row := range map[string]struct {
		addr         string
		certificates []tls.Certificate
		good         bool
	}{
		"public":                             {public, nil, true},
		"private, without a certificate":     {private, nil, false},
		"private, an operator":               {private, []tls.Certificate{operator}, true},
		"private, somebody else's authority": {private, []tls.Certificate{authority.Issue(valid).TLS(t)}, false},
	} {
		if status, err := get(t, row.addr, authority, row.certificates...); (err == nil && status == http.StatusOK) != row.good {
			t.Errorf("%s: %d, %v", name, status, err)
		}
	}
	families, err := registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	told := 0
	for _, family := range families {
		if family.GetName() == "sluice_tls_certificate_expiry_seconds" {
			told = len(family.GetMetric())
		}
	}
	if told != 2 {
		t.Errorf("the expiry of %d certificates is exposed, want 2", told)
	}
}

// The warning about a secret's file that every account can read has its variable, not its name.
func TestOpenSecretsAreToldOf(t *testing.T) {
	dir := t.TempDir()
	cert, key := testenv.NewAuthority(t).Issue(time.Now().Add(time.Hour)).Files(t, dir)
	open, closed := filepath.Join(dir, "open"), filepath.Join(dir, "closed")
	err := errors.Join(os.WriteFile(open, []byte("hunter2"), 0o600), os.WriteFile(closed, []byte("hunter2"), 0o600),
		os.Chmod(open, 0o604), os.Chmod(key, 0o644), os.Chmod(closed, 0o640))
	if err != nil {
		t.Fatal(err)
	}
	var config struct {
		config.Common
		config.Objects
	}
	err = envconfig.Load(settings("S3_ENDPOINT=http://h S3_ACCESS_KEY_FILE="+open+" S3_SECRET_KEY_FILE="+closed+
		" TLS_CERT_FILE="+cert+" TLS_KEY_FILE="+key), &config)
	if err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	if _, err := config.Listeners(slog.New(slog.NewJSONHandler(&log, nil)), telemetry.NewRegistry()); err != nil {
		t.Fatal(err)
	}
	text := log.String()
	if strings.Count(text, "\n") != 2 || !strings.Contains(text, "SLUICE_S3_ACCESS_KEY_FILE") ||
		!strings.Contains(text, "SLUICE_TLS_KEY_FILE") || strings.Contains(text, "hunter2") || strings.Contains(text, dir) {
		t.Errorf("logged %s", text)
	}
}

// CA_FILE applies to every dependency.
func TestOneFileOfAuthorities(t *testing.T) {
	authority := testenv.NewAuthority(t)
	certificate := authority.Issue(time.Now().Add(time.Hour), "127.0.0.1")
	store, database := testenv.SecureObjectStore(t, certificate), testenv.SecurePostgres(t, certificate)+"?sslmode=verify-full"
	environ := settings("REDIS_URL=" + testenv.SecureRedis(t, certificate) + " S3_ENDPOINT=" + store.Endpoint +
		" S3_ACCESS_KEY=" + store.AccessKey + " S3_SECRET_KEY=" + store.SecretKey + " S3_BUCKET=" + store.Bucket +
		" DIRECTORY_URL=" + database + " SOURCE_URL=" + database)
	for file, good := range map[string]bool{authority.File(): true, testenv.NewAuthority(t).File(): false} {
		var config struct {
			config.Common
			config.Redis
			config.Objects
			config.Directory
			config.Source
		}
		// Embeds several sections, so its Validate is ambiguous and is not called.
		if err := envconfig.Load(append(environ, "SLUICE_CA_FILE="+file), &config); err != nil {
			t.Fatal(err)
		}
		jobs, tasks, err := config.Redis.Open()
		if err != nil {
			t.Fatal(err)
		}
		objects, err := config.Objects.Open(nil)
		if err != nil {
			t.Fatal(err)
		}
		register, err := config.Directory.Open(t.Context(), slog.New(slog.DiscardHandler), 1)
		if err != nil {
			t.Fatal(err)
		}
		data, err := config.Source.Open(t.Context(), slog.New(slog.DiscardHandler), 1)
		if err != nil {
			t.Fatal(err)
		}
		for name, check := range map[string]func(context.Context) error{
			"redis": jobs.Ping, "queue": tasks.Ping, "objects": objects.EnsureBucket, "directory": register.Check, "source": data.Check,
		} {
			err := check(t.Context())
			if good && err != nil && !strings.Contains(err.Error(), "sluice admin migrate") { // so the database answered
				t.Errorf("%s: %v", name, err)
			}
			if !good && (err == nil || !strings.Contains(err.Error(), "unknown authority")) {
				t.Errorf("%s: %v, want an unknown authority", name, err)
			}
		}
		register.Close()
		objects.Close()
		if err := errors.Join(data.Close(), tasks.Close(), jobs.Close()); err != nil {
			t.Error(err)
		}
	}
}
