package queue_test

import (
	"context"
	"crypto/x509"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/queue"
	"github.com/sluice-fhir/sluice/pkg/testenv"
)

// Both who enqueues and who serves talk to a Redis behind TLS, as a user with a name of its own.
func TestTLS(t *testing.T) {
	authority := testenv.NewAuthority(t)
	url := testenv.SecureRedis(t, authority.Issue(time.Now().Add(time.Hour), "127.0.0.1"))
	client, err := queue.Open(url, queue.WithRoots(authority.Pool()))
	must(t, err)
	defer client.Close()
	must(t, client.Ping(t.Context()))
	must(t, client.EnqueueUnit(t.Context(), task("a")))
	ran := make(chan struct{}, 1)
	stop, done := begin(t, queue.ServerConfig{URL: url, Roots: authority.Pool()}, queue.Handlers{
		Unit: func(context.Context, queue.Task) error { ran <- struct{}{}; return nil },
	})
	next(t, ran)
	stop()
	must(t, next(t, done))

	for name, roots := range map[string]*x509.CertPool{"another authority": testenv.NewAuthority(t).Pool(), "the system's alone": nil} {
		stranger, err := queue.Open(url, queue.WithRoots(roots))
		must(t, err)
		err = errors.Join(stranger.Ping(t.Context()), stranger.EnqueueUnit(t.Context(), task("b")))
		if !errors.Is(err, export.ErrUnavailable) || strings.Count(err.Error(), "unknown authority") != 2 {
			t.Errorf("%s: %v, want an outage that says why", name, err)
		}
		must(t, stranger.Close())
	}
}

func TestVerificationCannotBeTurnedOff(t *testing.T) {
	_, err := queue.Open("rediss://u:hunter2@h:1/0?skip_verify=true")
	if err == nil || !strings.Contains(err.Error(), "skip_verify") || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("got %v", err)
	}
}
