package token_test

import (
	"context"
	"crypto/elliptic"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/token"
)

// longLived returns claims that do not expire during a test.
func longLived() members { return goodClaims().With("exp", start().Add(1000*time.Hour).Unix()) }

func accepted(t *testing.T, v *token.Verifier, raw string) {
	t.Helper()
	if _, err := v.Verify(t.Context(), raw); err != nil {
		t.Errorf("refused: %v", err)
	}
}

func refused(t *testing.T, v *token.Verifier, raw string, want error) {
	t.Helper()
	if _, err := v.Verify(t.Context(), raw); !errors.Is(err, want) {
		t.Errorf("got error %v, want %v", err, want)
	}
}

func asked(t *testing.T, s *keyServer, want int64) {
	t.Helper()
	if n := s.Asked(); n != want {
		t.Errorf("%d requests, want %d", n, want)
	}
}

func TestUnknownKidsRefetchOnceAMinute(t *testing.T) {
	key, c := ecKey(elliptic.P256()), newClock()
	server := serveKeys(t, jwks(jwkOf("k", key)))
	v := verifier(t, c, issuerAt(server.URL))
	for i := range 20 {
		refused(t, v, sign("ES256", fmt.Sprintf("unknown-%d", i), key, longLived()), token.ErrInvalid)
	}
	asked(t, server, 1)
	accepted(t, v, sign("ES256", "k", key, longLived()))
	asked(t, server, 1)
	c.Advance(59 * time.Second)
	refused(t, v, sign("ES256", "unknown", key, longLived()), token.ErrInvalid)
	asked(t, server, 1)
	c.Advance(time.Second)
	for range 20 {
		refused(t, v, sign("ES256", "unknown", key, longLived()), token.ErrInvalid)
	}
	asked(t, server, 2)
}

func TestTokensThatCannotPassFetchNothing(t *testing.T) {
	key := ecKey(elliptic.P256())
	server := serveKeys(t, jwks(jwkOf("k", key)))
	issuer := issuerAt(server.URL)
	issuer.Algorithms = []string{"ES256"}
	v := verifier(t, newClock(), issuer)
	for _, claims := range []members{
		goodClaims().With("exp", 1), goodClaims().With("aud", "urn:x"), goodClaims().With("iss", "urn:x"),
	} {
		refused(t, v, sign("ES256", "k", key, claims), token.ErrInvalid)
	}
	refused(t, v, sign("ES384", "k", ecKey(elliptic.P384()), goodClaims()), token.ErrInvalid)
	asked(t, server, 0)
}

func TestKeyRotation(t *testing.T) {
	older, newer, c := ecKey(elliptic.P256()), ecKey(elliptic.P256()), newClock()
	server := serveKeys(t, jwks(jwkOf("1", older)))
	v := verifier(t, c, issuerAt(server.URL))
	byOlder, byNewer := sign("ES256", "1", older, longLived()), sign("ES256", "2", newer, longLived())
	accepted(t, v, byOlder)
	refused(t, v, byNewer, token.ErrInvalid)

	c.Advance(time.Minute)
	server.Serve(jwks(jwkOf("1", older), jwkOf("2", newer)))
	accepted(t, v, byNewer)
	accepted(t, v, byOlder)

	c.Advance(time.Minute)
	server.Serve(jwks(jwkOf("2", newer)))
	refused(t, v, sign("ES256", "3", newer, longLived()), token.ErrInvalid) // causes a fetch
	refused(t, v, byOlder, token.ErrInvalid)
	accepted(t, v, byNewer)
}

func TestIssuerDownFromTheStart(t *testing.T) {
	key, c := ecKey(elliptic.P256()), newClock()
	server := serveKeys(t, "")
	server.Fail()
	v := verifier(t, c, issuerAt(server.URL))
	good := sign("ES256", "k", key, longLived())
	for range 10 {
		refused(t, v, good, export.ErrUnavailable)
	}
	asked(t, server, 1)
	server.Serve(jwks(jwkOf("k", key)))
	refused(t, v, good, export.ErrUnavailable)
	c.Advance(5 * time.Second)
	accepted(t, v, good)
	asked(t, server, 2)
}

func TestIssuerGoesDown(t *testing.T) {
	key, c := ecKey(elliptic.P256()), newClock()
	server := serveKeys(t, jwks(jwkOf("k", key)))
	v := verifier(t, c, issuerAt(server.URL))
	good, unknown := sign("ES256", "k", key, longLived()), sign("ES256", "new", key, longLived())
	accepted(t, v, good)
	server.Fail()
	for range 6 {
		c.Advance(10*time.Minute - time.Second)
		accepted(t, v, good)
		// The key may exist: no 401. This token also waits for the fetch that the one before started.
		refused(t, v, unknown, export.ErrUnavailable)
	}
	asked(t, server, 7)
	c.Advance(6 * time.Second) // an hour after the issuer last confirmed the set
	refused(t, v, good, export.ErrUnavailable)
	server.Serve(jwks(jwkOf("k", key)))
	c.Advance(5 * time.Second)
	accepted(t, v, good)
}

func TestWithdrawnKeyStopsWorking(t *testing.T) {
	// The fetch runs in the background; synctest.Wait waits for it.
	synctest.Test(t, func(t *testing.T) {
		key, c := ecKey(elliptic.P256()), newClock()
		set := jwks(jwkOf("k", key))
		fetches := 0
		v := verifierWith(t, c, func(*http.Request) (*http.Response, error) {
			fetches++
			return respond(set)
		}, issuerAt("https://issuer.example/jwks"))
		good := sign("ES256", "k", key, longLived())
		accepted(t, v, good)
		set = `{"keys":[]}`
		c.Advance(5*time.Minute - time.Second)
		accepted(t, v, good)
		synctest.Wait()
		if fetches != 1 {
			t.Errorf("%d fetches before the set is old, want 1", fetches)
		}
		c.Advance(time.Second)
		accepted(t, v, good) // starts the fetch and does not wait for it
		synctest.Wait()
		if fetches != 2 {
			t.Errorf("%d fetches once the set is old, want 2", fetches)
		}
		refused(t, v, good, token.ErrInvalid)
	})
}

func TestSlowIssuerDoesNotBlockKnownKids(t *testing.T) {
	key, c := ecKey(elliptic.P256()), newClock()
	server := serveKeys(t, jwks(jwkOf("k", key)))
	v := verifier(t, c, issuerAt(server.URL))
	good, unknown := sign("ES256", "k", key, longLived()), sign("ES256", "new", key, longLived())
	accepted(t, v, good)

	release, arrived := make(chan struct{}), make(chan struct{}, 100)
	server.Handle(func(w http.ResponseWriter, _ *http.Request) {
		arrived <- struct{}{}
		<-release
		_, _ = w.Write([]byte(jwks(jwkOf("k", key), jwkOf("new", key))))
	})
	c.Advance(10 * time.Minute)
	var waiting sync.WaitGroup
	for range 16 {
		waiting.Go(func() { accepted(t, v, unknown) })
	}
	<-arrived
	for range 16 {
		accepted(t, v, good) // must not wait: the issuer blocks until release
	}
	close(release)
	waiting.Wait()
	asked(t, server, 2)
}

func TestFetchOutlivesTheRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		key, c := ecKey(elliptic.P256()), newClock()
		var fetches atomic.Int64
		release := make(chan struct{})
		v := verifierWith(t, c, func(r *http.Request) (*http.Response, error) {
			fetches.Add(1)
			select {
			case <-release:
				return respond(jwks(jwkOf("k", key)))
			case <-r.Context().Done():
				return nil, r.Context().Err()
			}
		}, issuerAt("https://issuer.example/jwks"))
		good := sign("ES256", "k", key, longLived())
		var waiting sync.WaitGroup
		verify := func(ctx context.Context, want error) {
			waiting.Go(func() {
				if _, err := v.Verify(ctx, good); !errors.Is(err, want) {
					t.Errorf("got error %v, want %v", err, want)
				}
			})
			synctest.Wait()
		}

		verify(t.Context(), export.ErrUnavailable)
		waiting.Wait() // the fetch times out
		c.Advance(time.Minute)
		ctx, cancel := context.WithCancel(t.Context())
		verify(ctx, export.ErrUnavailable)
		cancel()
		waiting.Wait()
		verify(t.Context(), nil) // joins the fetch of the request that ended
		close(release)
		waiting.Wait()
		if n := fetches.Load(); n != 2 {
			t.Errorf("%d fetches, want 2", n)
		}

		release = make(chan struct{})
		c.Advance(2 * time.Hour)
		verify(t.Context(), export.ErrUnavailable)
		v.Close() // cancels the fetch
		waiting.Wait()
		verify(t.Context(), export.ErrUnavailable)
		waiting.Wait()
	})
}

// brokenKeySets returns handlers that serve no key set, or redirect to another host.
func brokenKeySets(set, elsewhere string) map[string]http.HandlerFunc {
	body := func(body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte(body)) }
	}
	return map[string]http.HandlerFunc{
		"HTML":        body("<html>"),
		"nothing":     func(http.ResponseWriter, *http.Request) {},
		"no keys":     body(`{}`),
		"a bare key":  body(`{"kty":"EC"}`),
		"two sets":    body(set + set),
		"status 500":  func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(500); _, _ = w.Write([]byte(set)) },
		"too large":   body(set + strings.Repeat(" ", 1<<20)),
		"other host":  http.RedirectHandler(elsewhere, http.StatusFound).ServeHTTP,
		"redirecting": http.RedirectHandler("/again", http.StatusFound).ServeHTTP,
		"cut short": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100000")
			_, _ = w.Write([]byte(set))
		},
	}
}

func TestInvalidKeySets(t *testing.T) {
	key := ecKey(elliptic.P256())
	set := jwks(jwkOf("k", key))
	elsewhere := serveKeys(t, set)
	for name, handler := range brokenKeySets(set, elsewhere.URL) {
		t.Run(name, func(t *testing.T) {
			server := serveKeys(t, "")
			server.Handle(handler)
			v := verifier(t, newClock(), issuerAt(server.URL+"/jwks?secret=1"))
			_, err := v.Verify(t.Context(), sign("ES256", "k", key, goodClaims()))
			if !errors.Is(err, export.ErrUnavailable) || errors.Is(err, token.ErrInvalid) {
				t.Fatalf("got error %v, want ErrUnavailable", err)
			}
			if strings.Contains(err.Error(), "secret") {
				t.Errorf("the error contains a query string: %v", err)
			}
		})
	}
	asked(t, elsewhere, 0)
	t.Run("moved on its host", func(t *testing.T) {
		server := serveKeys(t, "")
		server.Handle(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/old" {
				http.Redirect(w, r, "/new", http.StatusFound)
				return
			}
			_, _ = w.Write([]byte(set))
		})
		accepted(t, verifier(t, newClock(), issuerAt(server.URL+"/old")), sign("ES256", "k", key, goodClaims()))
	})
	t.Run("without any key", func(t *testing.T) {
		v := verifier(t, newClock(), issuerAt(serveKeys(t, `{"keys":[]}`).URL)) // an empty set is valid
		refused(t, v, sign("ES256", "k", key, goodClaims()), token.ErrInvalid)
	})
}

func TestKeyFile(t *testing.T) {
	older, newer, c := ecKey(elliptic.P256()), ecKey(elliptic.P256()), newClock()
	path := filepath.Join(t.TempDir(), "jwks.json")
	write := func(content string) {
		t.Helper()
		must(t, os.WriteFile(path+".new", []byte(content), 0o600))
		must(t, os.Rename(path+".new", path))
	}
	v := verifier(t, c, token.Issuer{Name: issuerName, Audiences: []string{audience}, JWKSFile: path})
	byOlder, byNewer := sign("ES256", "1", older, longLived()), sign("ES256", "2", newer, longLived())
	refused(t, v, byOlder, export.ErrUnavailable) // not there yet
	write(jwks(jwkOf("1", older)))
	c.Advance(5 * time.Second)
	accepted(t, v, byOlder)
	refused(t, v, byNewer, token.ErrInvalid)

	write(jwks(jwkOf("2", newer))) // takes effect at once
	refused(t, v, byOlder, token.ErrInvalid)
	accepted(t, v, byNewer)

	c.Advance(100 * time.Hour) // an unchanged file never becomes stale
	accepted(t, v, byNewer)

	write("garbage")
	accepted(t, v, byNewer)
	refused(t, v, byOlder, export.ErrUnavailable)
	must(t, os.Remove(path))
	c.Advance(time.Hour - time.Second)
	accepted(t, v, byNewer)
	c.Advance(time.Second)
	refused(t, v, byNewer, export.ErrUnavailable)
}
