package redisclient_test

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/redisclient"
	"github.com/sluice-fhir/sluice/pkg/testenv"
)

// A server without a valid certificate receives no command.
func TestTLS(t *testing.T) {
	authority := testenv.NewAuthority(t)
	valid := time.Now().Add(time.Hour)
	good := testenv.SecureRedis(t, authority.Issue(valid, "127.0.0.1"))
	elsewhere := testenv.SecureRedis(t, authority.Issue(valid, "redis.example.org"))
	expired := testenv.SecureRedis(t, authority.Issue(time.Now().Add(-time.Hour), "127.0.0.1"))
	for name, row := range map[string]struct {
		url   string
		roots *x509.CertPool
		want  string // of the error; "": none
	}{
		"a known server":     {good, authority.Pool(), ""},
		"another authority":  {good, testenv.NewAuthority(t).Pool(), "unknown authority"},
		"the system's alone": {good, nil, "unknown authority"},
		"another host":       {elsewhere, authority.Pool(), "doesn't contain any IP SANs"},
		"expired":            {expired, authority.Pool(), "expired"},
		"plain to TLS":       {"redis" + strings.TrimPrefix(good, "rediss"), authority.Pool(), "EOF"},
	} {
		client, err := redisclient.Open(row.url, redisclient.WithRoots(row.roots))
		if err != nil {
			t.Fatal(err)
		}
		err = redisclient.Ping(t.Context(), client)
		if row.want == "" && err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if row.want != "" && (!errors.Is(err, export.ErrUnavailable) || !strings.Contains(err.Error(), row.want)) {
			t.Errorf("%s: %v, want an outage with %q", name, err, row.want)
		}
		if err := client.Close(); err != nil {
			t.Error(err)
		}
	}

	// A server without TLS never answers the handshake.
	client, err := redisclient.Open("rediss" + strings.TrimPrefix(testenv.Redis(t), "redis"))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := redisclient.Ping(ctx, client); !errors.Is(err, export.ErrUnavailable) {
		t.Errorf("TLS to plain: %v, want an outage", err)
	}
}

func TestBadURLs(t *testing.T) {
	for url, want := range map[string]string{
		"rediss://u:hunter2@h:1/0?skip_verify=true": "skip_verify",
		"redis://u:hunter2@host:port:port":          "cannot be parsed",
	} {
		_, err := redisclient.Open(url)
		if err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("got %v, want %q and no password", err, want)
		}
	}
}

// A Redis that evicts loses jobs (pitfall 27), and a replica refuses every write.
func TestPingRefusesARedisThatCannotKeepJobs(t *testing.T) {
	for name, row := range map[string]struct {
		settings []string
		want     string // of the error; "": none
	}{
		"a primary":    {nil, ""},
		"allkeys-lru":  {[]string{"--maxmemory-policy", "allkeys-lru"}, "evicts keys (maxmemory-policy allkeys-lru)"},
		"volatile-ttl": {[]string{"--maxmemory-policy", "volatile-ttl"}, "evicts keys (maxmemory-policy volatile-ttl)"},
		"a replica":    {[]string{"--replicaof", "127.0.0.1", "1"}, "read-only replica"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client, err := redisclient.Open(testenv.RedisServer(t, row.settings...))
			if err != nil {
				t.Fatal(err)
			}
			defer client.Close()
			err = redisclient.Ping(t.Context(), client)
			if row.want == "" && err != nil {
				t.Errorf("ping: %v", err)
			}
			if row.want != "" && (!errors.Is(err, export.ErrUnavailable) || !strings.Contains(err.Error(), row.want)) {
				t.Errorf("ping: %v, want an outage with %q", err, row.want)
			}
		})
	}
}

// Missing values and unknown scripts do not count as errors of Redis; an unreachable server does.
func TestCommandsAreObserved(t *testing.T) {
	calls, failed := map[string]int{}, map[string]int{}
	observe := func(operation string, _ time.Time, err error) {
		calls[operation]++
		if err != nil {
			failed[operation]++
		}
	}
	client, err := redisclient.Open(testenv.Redis(t), redisclient.WithObserver(observe))
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	ctx := t.Context()
	unknown := redis.NewScript("return redis.call('GET', KEYS[1]) -- " + rand.Text()) // the server keeps scripts
	if err := unknown.Run(ctx, client, []string{"none"}).Err(); !errors.Is(err, redis.Nil) {
		t.Fatal(err)
	}
	if _, err := client.Pipelined(ctx, func(pipe redis.Pipeliner) error { pipe.Set(ctx, "k", 1, 0); return nil }); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(client.Get(ctx, "k").Err(), redisclient.Ping(ctx, client)); err != nil {
		t.Fatal(err)
	}
	if calls["script"] != 2 || calls["read"] != 1 || calls["write"] != 1 || calls["probe"] != 1 || len(failed) != 0 {
		t.Errorf("calls %v, failed %v", calls, failed)
	}
	gone, err := redisclient.Open("redis://127.0.0.1:1", redisclient.WithObserver(observe))
	if err != nil {
		t.Fatal(err)
	}
	defer gone.Close()
	if err := gone.Get(ctx, "k").Err(); err == nil || failed["read"] != 1 {
		t.Errorf("without a server: %v, failed %v", err, failed)
	}
}
