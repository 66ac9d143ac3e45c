package jobstore_test

import (
	"context"
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/jobstore"
	"github.com/sluice-fhir/sluice/pkg/testenv"
)

// A Redis that does not prove who it is gets nothing, not even in plain text.
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
		"a server that is known": {good, authority.Pool(), ""},
		"another authority":      {good, testenv.NewAuthority(t).Pool(), "unknown authority"},
		"the system's alone":     {good, nil, "unknown authority"},
		"another host":           {elsewhere, authority.Pool(), "doesn't contain any IP SANs"},
		"expired":                {expired, authority.Pool(), "expired"},
		"plain to TLS":           {"redis" + strings.TrimPrefix(good, "rediss"), authority.Pool(), "EOF"},
	} {
		store, err := jobstore.Open(row.url, nil, jobstore.WithRoots(row.roots))
		if err != nil {
			t.Fatal(err)
		}
		err = store.Ping(t.Context())
		if row.want == "" && err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if row.want != "" && (!errors.Is(err, export.ErrUnavailable) || !strings.Contains(err.Error(), row.want)) {
			t.Errorf("%s: %v, want an outage that says %q", name, err, row.want)
		}
		if err := store.Close(); err != nil {
			t.Error(err)
		}
	}

	// One that speaks no TLS has nothing to say to a handshake.
	store, err := jobstore.Open("rediss"+strings.TrimPrefix(testenv.Redis(t), "redis"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer store.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := store.Ping(ctx); !errors.Is(err, export.ErrUnavailable) {
		t.Errorf("TLS to plain: %v, want an outage", err)
	}
}

func TestVerificationCannotBeTurnedOff(t *testing.T) {
	_, err := jobstore.Open("rediss://u:hunter2@h:1/0?skip_verify=true", nil)
	if err == nil || !strings.Contains(err.Error(), "skip_verify") || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("got %v", err)
	}
}
