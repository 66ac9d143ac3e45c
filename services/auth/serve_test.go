package main

import (
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/sluice-fhir/sluice/pkg/testenv"
	"github.com/sluice-fhir/sluice/services/config/configtest"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func environment(redis string, more ...string) []string {
	return append([]string{
		"SLUICE_REDIS_URL=" + redis, "SLUICE_AUTH_ADDR=127.0.0.1:0", "SLUICE_AUTH_TOKEN_URL=https://auth.example.org/token",
		"SLUICE_BASE_URL=https://bulk.example.org/fhir", "SLUICE_AUTH_KEY_SECRET=hush, but 32 bytes of it at least",
	}, more...)
}

// --check-config reports every problem at once, and no secret.
func TestCheckConfig(t *testing.T) {
	clients := filepath.Join(t.TempDir(), "clients.yaml")
	must(t, os.WriteFile(clients, []byte("clients: [{id: a}]"), 0o600))
	for name, test := range map[string]struct {
		set  []string
		want []string
	}{
		"good":          {nil, nil},
		"on loopback":   {[]string{"SLUICE_AUTH_TOKEN_URL=http://127.0.0.1:1/auth/token"}, nil},
		"with proxies":  {[]string{"SLUICE_AUTH_TRUSTED_PROXIES=10.0.0.0/8,fd00::/8"}, nil},
		"no token URL":  {[]string{"SLUICE_AUTH_TOKEN_URL="}, []string{"AUTH_TOKEN_URL"}},
		"http":          {[]string{"SLUICE_AUTH_TOKEN_URL=http://auth.example.org/token"}, []string{"AUTH_TOKEN_URL", "https"}},
		"no /token":     {[]string{"SLUICE_AUTH_TOKEN_URL=https://auth.example.org/tokens"}, []string{"AUTH_TOKEN_URL", "/token"}},
		"a query":       {[]string{"SLUICE_AUTH_TOKEN_URL=https://auth.example.org/token?a=/token"}, []string{"AUTH_TOKEN_URL"}},
		"a user":        {[]string{"SLUICE_AUTH_TOKEN_URL=https://a:b@auth.example.org/token"}, []string{"AUTH_TOKEN_URL"}},
		"base URL":      {[]string{"SLUICE_BASE_URL=bulk.example.org"}, []string{"SLUICE_BASE_URL"}},
		"a proxy":       {[]string{"SLUICE_AUTH_TRUSTED_PROXIES=10.0.0.300/8"}, []string{"SLUICE_AUTH_TRUSTED_PROXIES"}},
		"no clients":    {[]string{"SLUICE_AUTH_CLIENTS_FILE=" + clients + ".gone"}, []string{"SLUICE_AUTH_CLIENTS_FILE"}},
		"an odd switch": {[]string{"SLUICE_AUTH_CLIENT_SECRET=perhaps"}, []string{"SLUICE_AUTH_CLIENT_SECRET"}},
		"much at once": {[]string{
			"SLUICE_AUTH_KEY_SECRET=hush", "SLUICE_AUTH_KEY_SECRET_PREVIOUS=hush", "SLUICE_AUTH_KEY_ROTATE=1m",
			"SLUICE_AUTH_TOKEN_LIFE=1h", "SLUICE_AUTH_CLIENTS_FILE=" + clients, "SLUICE_AUTH_FAILURES_ADDRESS=0",
			"SLUICE_BASE_URL=x",
		}, []string{
			"AUTH_KEY_SECRET:", "AUTH_KEY_SECRET_PREVIOUS:", "AUTH_KEY_ROTATE", "AUTH_TOKEN_LIFE", "AUTH_CLIENTS_FILE: clients",
			"AUTH_FAILURES", "SLUICE_BASE_URL",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			err := run(t.Context(), []string{"--check-config"}, environment("redis://127.0.0.1:1", test.set...), io.Discard)
			if (err == nil) != (test.want == nil) {
				t.Fatalf("%v", err)
			}
			for _, word := range test.want {
				if !strings.Contains(err.Error(), word) {
					t.Errorf("%v does not mention %s", err, word)
				}
			}
			if err != nil && strings.Contains(err.Error(), "hush") {
				t.Errorf("%v contains a secret", err)
			}
		})
	}
}

// The service starts while Redis is down and is not ready. It serves when Redis is back, and stops without leaks.
func TestStartWithoutRedisAndStop(t *testing.T) {
	redis := testenv.EmbeddedRedis(t)
	address := redis.Addr()
	redis.Close()
	already := goleak.IgnoreCurrent()
	clients := filepath.Join(t.TempDir(), "clients.yaml")
	must(t, os.WriteFile(clients, []byte("clients: []"), 0o600))
	public, private, stop := configtest.Start(t, "auth", run, environment("redis://"+address,
		"SLUICE_AUTH_KEY_SECRET_PREVIOUS=the secret before, of 32 bytes too", "SLUICE_AUTH_CLIENTS_FILE="+clients,
		"SLUICE_AUTH_ASSERTION_REPLAY=true"))
	transport := &http.Transport{DisableKeepAlives: true}
	ask := func(url string) int {
		t.Helper()
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		must(t, err)
		response, err := transport.RoundTrip(request)
		must(t, err)
		must(t, response.Body.Close())
		return response.StatusCode
	}
	for url, want := range map[string]int{
		"http://" + public + "/livez": 200, "http://" + public + "/readyz": 503, "http://" + public + "/jwks": 503,
		"http://" + public + "/metrics": 404, "http://" + private + "/readyz": 503, "http://" + private + "/metrics": 200,
	} {
		if got := ask(url); got != want {
			t.Errorf("%s: %d, want %d", url, got, want)
		}
	}
	must(t, redis.Restart())
	deadline := time.Now().Add(time.Minute) // against an endless loop
	for ask("http://"+public+"/jwks") != 200 {
		if time.Now().After(deadline) {
			t.Fatal("no keys after Redis is back")
		}
	}
	stop()
	redis.Close()
	goleak.VerifyNone(t, already)
}
