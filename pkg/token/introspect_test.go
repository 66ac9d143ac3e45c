package token_test

import (
	"context"
	"crypto/elliptic"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/token"
)

// opaque is a token that only its issuer can read.
const opaque = "2YotnFZFEjr1zCsicMWpAA"

// active returns the response for a token that is valid at start.
func active() members { return goodClaims().With("active", true).With("token_type", "Bearer") }

// introspecting returns an issuer with an introspection endpoint and without keys.
func introspecting(url string) token.Issuer {
	return token.Issuer{
		Name: issuerName, Audiences: []string{"urn:other", audience},
		Introspection: &token.Introspection{URL: url, ClientID: "sluice api", ClientSecret: "s:ecret"},
	}
}

func TestIntrospectionRequest(t *testing.T) {
	server := serveKeys(t, "")
	server.Handle(func(w http.ResponseWriter, r *http.Request) {
		client, secret, _ := r.BasicAuth()
		if client != "sluice+api" || secret != "s%3Aecret" { // RFC 6749 section 2.3.1
			t.Errorf("client %q, secret %q", client, secret)
		}
		if err := r.ParseForm(); err != nil {
			t.Error(err)
		}
		if r.Method != "POST" || r.URL.RawQuery != "" || len(r.PostForm) != 2 || r.PostForm.Get("token") != opaque ||
			r.PostForm.Get("token_type_hint") != "access_token" || r.Header.Get("Accept") != "application/json" {
			t.Errorf("%s %s %v, Accept %q", r.Method, r.URL, r.PostForm, r.Header.Get("Accept"))
		}
		_, _ = io.WriteString(w, active().String())
	})
	p, err := verifier(t, newClock(), introspecting(server.URL)).Verify(t.Context(), opaque)
	must(t, err)
	if want := (export.Owner{Issuer: issuerName, Subject: subject}); p.Owner != want {
		t.Errorf("owner %+v, want %+v", p.Owner, want)
	}
	if !p.Scopes.MayRead("Observation") || !p.Expires.Equal(start().Add(5*time.Minute)) {
		t.Errorf("scopes %+v, expires %s", p.Scopes, p.Expires)
	}
}

// Only a complete and valid response gives a Principal (RFC 7662 section 2.2).
func TestIntrospectionResponses(t *testing.T) {
	unix := func(d time.Duration) int64 { return start().Add(d).Unix() }
	var good error
	none, down := token.ErrInvalid, export.ErrUnavailable
	for name, test := range map[string]struct {
		answer string
		want   error
	}{
		"good":                      {active().String(), good},
		"no token_type":             {active().Without("token_type").String(), good},
		"token_type in lower case":  {active().With("token_type", "bearer").String(), good},
		"no iss":                    {active().Without("iss").String(), good},
		"no nbf and no iat":         {active().Without("nbf").Without("iat").String(), good},
		"aud array with ours":       {active().With("aud", []string{"urn:x", audience}).String(), good},
		"no scope":                  {active().Without("scope").String(), good},
		"username":                  {active().With("username", "root").String(), good},
		"not active":                {`{"active":false}`, none},
		"not active, with claims":   {active().With("active", false).String(), none},
		"iss of another":            {active().With("iss", "https://evil.example").String(), none},
		"iss with a slash":          {active().With("iss", issuerName+"/").String(), none},
		"iss null":                  {active().With("iss", nil).String(), none},
		"aud of another":            {active().With("aud", "urn:x").String(), none},
		"aud missing":               {active().Without("aud").String(), none},
		"aud empty":                 {active().With("aud", []string{}).String(), none},
		"aud null":                  {active().With("aud", nil).String(), none},
		"aud a number":              {active().With("aud", 1).String(), none},
		"sub missing":               {active().Without("sub").String(), none},
		"sub missing, username":     {active().Without("sub").With("username", "root").String(), none},
		"sub empty":                 {active().With("sub", "").String(), none},
		"sub a number":              {active().With("sub", 1).String(), none},
		"sub very long":             {active().With("sub", strings.Repeat("x", 1025)).String(), none},
		"exp missing":               {active().Without("exp").String(), none},
		"exp a string":              {active().With("exp", "1").String(), none},
		"expired":                   {active().With("exp", unix(-time.Minute)).String(), none},
		"nbf ahead":                 {active().With("nbf", unix(61*time.Second)).String(), none},
		"nbf a string":              {active().With("nbf", "1").String(), none},
		"iat ahead":                 {active().With("iat", unix(61*time.Second)).String(), none},
		"token_type DPoP":           {active().With("token_type", "DPoP").String(), none},
		"token_type null":           {active().With("token_type", nil).String(), none},
		"bound to a key":            {active().With("cnf", map[string]string{"jkt": "x"}).String(), none},
		"granular scope":            {active().With("scope", "system/Patient.rs?a=b").String(), none},
		"scope an object":           {active().With("scope", map[string]string{}).String(), none},
		"active missing":            {goodClaims().String(), down},
		"active a string":           {active().With("active", "true").String(), down},
		"active a number":           {active().With("active", 1).String(), down},
		"active null":               {active().With("active", nil).String(), down},
		"active twice":              {`{"active":false,` + active().String()[1:], down},
		"Active":                    {goodClaims().With("Active", true).String(), down},
		"empty":                     {"", down},
		"HTML":                      {"<html>", down},
		"an array":                  {"[" + active().String() + "]", down},
		"true":                      {"true", down},
		"two answers":               {active().String() + active().String(), down},
		"not UTF-8":                 {strings.Replace(active().String(), subject, "\xff", 1), down},
		"a signed answer, RFC 9701": {"eyJhbGciOiJSUzI1NiJ9.e30.AAAA", down},
		"more than 64 KiB":          {active().With("pad", strings.Repeat("x", 64<<10)).String(), down},
	} {
		t.Run(name, func(t *testing.T) {
			v := verifier(t, newClock(), introspecting(serveKeys(t, test.answer).URL))
			p, err := v.Verify(t.Context(), opaque)
			if !errors.Is(err, test.want) || errors.Is(err, token.ErrInvalid) && errors.Is(err, export.ErrUnavailable) {
				t.Fatalf("got error %v, want %v", err, test.want)
			}
			if (err == nil) != (p.Owner == export.Owner{Issuer: issuerName, Subject: subject}) {
				t.Errorf("principal %+v with error %v", p, err)
			}
			if err != nil && (strings.Contains(err.Error(), opaque) || strings.Contains(err.Error(), "root")) {
				t.Errorf("the error contains a part of the token or of the response: %v", err)
			}
		})
	}
}

// While the endpoint fails, with any body, the error is ErrUnavailable and contains no secret.
func TestIntrospectionEndpointDown(t *testing.T) {
	elsewhere := serveKeys(t, active().String())
	for name, handler := range map[string]http.HandlerFunc{
		"status 401": status(401), "status 403": status(403), "status 404": status(404), "status 429": status(429),
		"status 500": status(500), "status 201": status(201),
		"redirect":              http.RedirectHandler(elsewhere.URL, http.StatusTemporaryRedirect).ServeHTTP,
		"redirect to the place": http.RedirectHandler("/again", http.StatusPermanentRedirect).ServeHTTP,
		"cut short": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100000")
			_, _ = io.WriteString(w, active().String())
		},
		"hangs up": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	} {
		t.Run(name, func(t *testing.T) {
			server := serveKeys(t, "")
			server.Handle(handler)
			v := verifier(t, newClock(), introspecting(server.URL+"/introspect?key=hidden"))
			_, err := v.Verify(t.Context(), opaque)
			if !errors.Is(err, export.ErrUnavailable) || errors.Is(err, token.ErrInvalid) {
				t.Fatalf("got error %v, want ErrUnavailable", err)
			}
			for _, secret := range []string{"hidden", opaque, "ecret"} {
				if strings.Contains(err.Error(), secret) {
					t.Errorf("the error shows %q: %v", secret, err)
				}
			}
			server.Serve(active().String())
			accepted(t, v, opaque) // an outage is not cached
		})
	}
	if n := elsewhere.Asked(); n != 0 {
		t.Errorf("a token was sent to another host %d times", n)
	}
}

func status(code int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(code)
		_, _ = io.WriteString(w, active().String())
	}
}

// The issuer receives only tokens that may be its own.
func TestIntrospectionOfOwnTokensOnly(t *testing.T) {
	key, other := ecKey(elliptic.P256()), ecKey(elliptic.P256())
	keys := serveKeys(t, jwks(jwkOf("k", key)))
	signed := sign("ES256", "k", key, goodClaims())
	forged := sign("ES256", "k", other, goodClaims())
	foreign := sign("ES256", "k", key, goodClaims().With("iss", "https://elsewhere.example"))
	none := b64.EncodeToString([]byte(`{"alg":"none"}`)) + "." + strings.Split(signed, ".")[1] + "."
	for name, test := range map[string]struct {
		raw           string
		beside, alone bool // whether it is introspected by an issuer with keys, and by one without
	}{
		"opaque":                           {opaque, true, true},
		"opaque with a dot":                {"ory_at_abc.def", true, true},
		"opaque with two dots":             {"v4.public.abc", true, true},
		"opaque, all characters":           {"aZ09-._~+/==", true, true},
		"opaque, base64 of a brace":        {"e3t7e3t7", true, true},
		"as long as allowed":               {strings.Repeat("x", 8<<10), true, true},
		"signed":                           {signed, false, true},
		"forged":                           {forged, false, true},
		"signed, alg none":                 {none, false, true},
		"header with blanks":               {b64.EncodeToString([]byte(" { \"alg\":1}")) + ".e30.AAAA", false, false},
		"signed by another":                {foreign, false, false},
		"encrypted":                        {"eyJhbGciOiJSU0EtT0FFUCIsImVuYyI6IkEyNTZHQ00ifQ.AAAA.AAAA.AAAA.AAAA", false, false},
		"payload that cannot be read":      {"eyJhbGciOiJub25lIn0.!.AAAA", false, false},
		"payload with iss twice":           {"eyJhbGciOiJub25lIn0." + b64.EncodeToString([]byte(`{"iss":"a","iss":"a"}`)) + ".A", false, false},
		"payload without iss":              {"eyJhbGciOiJub25lIn0.e30.AAAA", false, false},
		"too long":                         {strings.Repeat("x", 8<<10+1), false, false},
		"empty":                            {"", false, false},
		"only padding":                     {"==", false, false},
		"padding inside":                   {"a=b", false, false},
		"blank inside":                     {"a b", false, false},
		"line break":                       {"ab\n", false, false},
		"other script":                     {"абв", false, false},
		"a comma, as of two header values": {"ab,cd", false, false},
	} {
		for _, place := range []struct {
			jwks string
			want bool
		}{{keys.URL, test.beside}, {"", test.alone}} {
			t.Run(fmt.Sprintf("%s, keys %v", name, place.jwks != ""), func(t *testing.T) {
				server := serveKeys(t, `{"active":false}`)
				issuer := introspecting(server.URL)
				issuer.JWKSURL = place.jwks
				_, err := verifier(t, newClock(), issuer).Verify(t.Context(), test.raw)
				if err != nil && !errors.Is(err, token.ErrInvalid) {
					t.Error(err)
				}
				if (err == nil) != (test.raw == signed && place.jwks != "") {
					t.Errorf("error %v", err)
				}
				if n := server.Asked(); (n == 1) != place.want {
					t.Errorf("%d introspections, want one: %v", n, place.want)
				}
			})
		}
	}
}

// An issuer with keys works beside one that introspects.
func TestIntrospectionBesideOtherIssuers(t *testing.T) {
	key := ecKey(elliptic.P256())
	keys := issuerAt(serveKeys(t, jwks(jwkOf("k", key))).URL)
	keys.Name = "https://b.example"
	server := serveKeys(t, active().String())
	v := verifier(t, newClock(), introspecting(server.URL), keys)
	p, err := v.Verify(t.Context(), sign("ES256", "k", key, goodClaims().With("iss", keys.Name)))
	if err != nil || p.Owner.Issuer != keys.Name {
		t.Errorf("owner %+v, error %v", p.Owner, err)
	}
	asked(t, server, 0)
	if p, err = v.Verify(t.Context(), opaque); err != nil || p.Owner.Issuer != issuerName {
		t.Errorf("owner %+v, error %v", p.Owner, err)
	}
}

func TestIntrospectionAudienceOptional(t *testing.T) {
	for name, test := range map[string]struct {
		answer members
		want   error
	}{
		"no aud":         {active().Without("aud"), nil},
		"aud":            {active(), nil},
		"aud of another": {active().With("aud", "urn:x"), token.ErrInvalid},
		"aud empty":      {active().With("aud", []string{}), token.ErrInvalid},
		"aud null":       {active().With("aud", nil), token.ErrInvalid},
	} {
		issuer := introspecting(serveKeys(t, test.answer.String()).URL)
		issuer.Introspection.AudienceOptional = true
		if _, err := verifier(t, newClock(), issuer).Verify(t.Context(), opaque); !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", name, err, test.want)
		}
	}
	// A signed token still needs an aud.
	key := ecKey(elliptic.P256())
	issuer := introspecting("https://issuer.example")
	issuer.JWKSURL, issuer.Introspection.AudienceOptional = serveKeys(t, jwks(jwkOf("k", key))).URL, true
	refused(t, verifier(t, newClock(), issuer), sign("ES256", "k", key, goodClaims().With("aud", []string{})),
		token.ErrInvalid)
}

// A response is cached for a minute, and never beyond the token's expiry. Then a revoked token is refused.
func TestIntrospectionCache(t *testing.T) {
	c, server := newClock(), serveKeys(t, active().With("exp", start().Add(90*time.Second).Unix()).String())
	v := verifier(t, c, introspecting(server.URL))
	accepted(t, v, opaque)
	c.Advance(60*time.Second - 1)
	accepted(t, v, opaque)
	asked(t, server, 1)
	c.Advance(1)
	accepted(t, v, opaque)
	asked(t, server, 2)
	c.Advance(30 * time.Second) // the token expires, so it is introspected again within the minute
	accepted(t, v, opaque)      // within the skew
	asked(t, server, 3)
	server.Fail()
	refused(t, v, opaque, export.ErrUnavailable) // an expired response does not serve
	server.Serve(`{"active":false}`)
	refused(t, v, opaque, token.ErrInvalid)
	asked(t, server, 5)
	server.Serve(active().String()) // some issuers return a token before all of their nodes accept it
	c.Advance(10*time.Second - 1)
	refused(t, v, opaque, token.ErrInvalid)
	asked(t, server, 5)
	c.Advance(1)
	accepted(t, v, opaque)
	asked(t, server, 6)

	// An issuer with its own CacheFor. The times of a cached token are checked at each use.
	server.Serve(active().With("exp", c.Now().Unix()).With("iat", c.Now().Unix()).String())
	issuer := introspecting(server.URL)
	issuer.Introspection.CacheFor = 5 * time.Second
	v = verifier(t, c, issuer)
	accepted(t, v, opaque) // within the skew
	server.Serve(active().With("exp", c.Now().Add(time.Hour).Unix()).String())
	accepted(t, v, opaque)
	asked(t, server, 8)
	c.Advance(5*time.Second - 1)
	accepted(t, v, opaque)
	asked(t, server, 8)
	server.Serve(`{"active":false}`)
	c.Advance(1)
	refused(t, v, opaque, token.ErrInvalid)
	server.Serve(active().With("exp", c.Now().Unix()).With("iat", c.Now().Unix()).String())
	v = verifier(t, c, introspecting(server.URL))
	accepted(t, v, opaque) // within the skew
	c.Advance(time.Minute)
	refused(t, v, opaque, token.ErrInvalid)
}

// A flood of invented tokens is limited, and does not lock out a token that was accepted before.
func TestIntrospectionFlood(t *testing.T) {
	c, server := newClock(), serveKeys(t, active().With("exp", start().Add(time.Hour).Unix()).String())
	v := verifier(t, c, introspecting(server.URL))
	accepted(t, v, opaque)
	server.Serve(`{"active":false}`)
	limited := 0
	for i := range 6000 { // more than are cached
		_, err := v.Verify(t.Context(), fmt.Sprint("made-up-", i))
		switch {
		case errors.Is(err, export.ErrUnavailable) && !errors.Is(err, token.ErrInvalid):
			limited++
		case !errors.Is(err, token.ErrInvalid):
			t.Fatalf("invented token %d: %v", i, err)
		}
	}
	const burst = 200
	asked(t, server, burst)
	if want := 6000 - burst + 1; limited != want {
		t.Errorf("%d invented tokens are over the limit, want %d", limited, want)
	}
	server.Serve(active().With("exp", start().Add(time.Hour).Unix()).String())
	accepted(t, v, opaque) // from the cache
	asked(t, server, burst)
	refused(t, v, "new-and-good", export.ErrUnavailable)
	c.Advance(time.Minute)
	for i := range burst {
		_, _ = v.Verify(t.Context(), fmt.Sprint("made-up-again-", i))
	}
	refused(t, v, "new-and-good", export.ErrUnavailable)
	before := server.Asked()
	accepted(t, v, opaque) // introspected again despite the flood
	asked(t, server, before+1)
	c.Advance(time.Second)
	accepted(t, v, "new-and-good")

	// A refused token has the limits of a new one, even if it was accepted before.
	server.Serve(`{"active":false}`)
	c.Advance(time.Minute)
	refused(t, v, opaque, token.ErrInvalid)
	c.Advance(10 * time.Second)
	for i := range burst {
		_, _ = v.Verify(t.Context(), fmt.Sprint("made-up-at-last-", i))
	}
	refused(t, v, opaque, export.ErrUnavailable)
	refused(t, v, "made-up-0", export.ErrUnavailable)
}

// Concurrent uses of a token share one introspection, and at most as many introspections run as there are slots.
func TestConcurrentIntrospections(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var running, most atomic.Int64
		release := make(chan struct{})
		v := introspectingWith(t, newClock(), func(*http.Request) (*http.Response, error) {
			most.Store(max(most.Load(), running.Add(1)))
			<-release
			running.Add(-1)
			return respond(active().String())
		})
		defer v.Close()
		var waiting sync.WaitGroup
		for range 50 {
			waiting.Go(func() { accepted(t, v, opaque) })
		}
		synctest.Wait()
		if n := running.Load(); n != 1 {
			t.Errorf("%d introspections of one token", n)
		}
		for i := range 50 {
			waiting.Go(func() { accepted(t, v, fmt.Sprint("another-", i)) })
		}
		synctest.Wait()
		if n := running.Load(); n != 16 {
			t.Errorf("%d concurrent introspections, want 16", n)
		}
		close(release)
		waiting.Wait()
		if n := most.Load(); n > 16 {
			t.Errorf("%d concurrent introspections", n)
		}
	})
}

// Introspections of new tokens that hang leave slots for a token that was accepted before.
func TestIntrospectionKeepsSlotsForAcceptedTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newClock()
		v := introspectingWith(t, c, func(r *http.Request) (*http.Response, error) {
			if err := r.ParseForm(); err != nil || r.PostForm.Get("token") != opaque {
				<-r.Context().Done()
				return nil, r.Context().Err()
			}
			return respond(active().With("exp", start().Add(time.Hour).Unix()).String())
		})
		accepted(t, v, opaque)
		c.Advance(time.Minute)
		var waiting sync.WaitGroup
		for i := range 40 {
			waiting.Go(func() { refused(t, v, fmt.Sprint("new-", i), export.ErrUnavailable) })
		}
		synctest.Wait()
		accepted(t, v, opaque)
		v.Close()
		waiting.Wait()
	})
}

// An introspection that hangs times out after five seconds, the wait for a slot included. Close cancels one whose request
// has ended.
func TestIntrospectionHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		v := introspectingWith(t, newClock(), func(r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			return nil, r.Context().Err()
		})
		began := time.Now()
		var waiting sync.WaitGroup
		for i := range 40 {
			waiting.Go(func() { refused(t, v, fmt.Sprint("token-", i), export.ErrUnavailable) })
		}
		waiting.Wait()
		if d := time.Since(began); d != 5*time.Second { // by the clock of synctest
			t.Errorf("ended after %s", d)
		}
		ctx, cancel := context.WithCancel(t.Context())
		waiting.Go(func() {
			if _, err := v.Verify(ctx, opaque); !errors.Is(err, export.ErrUnavailable) {
				t.Errorf("a request that ended: %v", err)
			}
		})
		synctest.Wait()
		cancel()
		waiting.Wait()
		v.Close() // cancels the introspection
		refused(t, v, "late", export.ErrUnavailable)
	})
}

func introspectingWith(t *testing.T, c *clock, transport roundTripper) *token.Verifier {
	t.Helper()
	return verifierWith(t, c, transport, introspecting("https://issuer.example/introspect"))
}
