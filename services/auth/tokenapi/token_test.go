package tokenapi_test

import (
	"net/http"
	"net/url"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/token"
	"github.com/sluice-fhir/sluice/pkg/token/tokentest"
	"github.com/sluice-fhir/sluice/services/auth/tokenapi"
)

// Conformance 10.1 and 10.2 over HTTP.

// TestSMARTConfiguration checks the document itself.
func TestB01ToB07Discovery(t *testing.T) {
	for _, secrets := range []bool{false, true} {
		f := newFixture(t, func(c *tokenapi.Config) { c.ClientSecrets = secrets })
		var document token.SMART
		get(t, f.base+"/.well-known/smart-configuration", "application/json", &document)
		if want := token.SMARTConfiguration(f.url, secrets); !reflect.DeepEqual(document, want) {
			t.Errorf("%+v, want %+v", document, want)
		}
	}
}

func TestB10ToB12AndB39Token(t *testing.T) {
	f := newFixture(t, nil)
	f.app(everything)
	for name, assertion := range map[string]string{
		"RS384":           forge("RS384", keys().rsa, `{"alg":"RS384","kid":"r","typ":"JWT"}`, f.claims().String()),
		"ES384":           f.asserted(nil),
		"aud in an array": f.asserted(f.claims().With("aud", []string{"urn:x", f.url})),
		"no typ":          forge("ES384", keys().ec, `{"alg":"ES384","kid":"e"}`, f.claims().String()),
		"nbf and iat":     f.asserted(f.claims().With("nbf", start().Unix()).With("iat", start().Unix())),
		"long jti":        f.asserted(f.claims().With("jti", strings.Repeat("j", 4000))),
		"5 min and skew":  f.asserted(f.claims().With("exp", start().Add(6*time.Minute).Unix())),
	} {
		t.Run(name, func(t *testing.T) {
			r := f.post(f.form(assertion, everything))
			wantToken(t, r, everything)
			if r.header.Get("Cache-Control") != "no-store" || r.header.Get("Pragma") != "no-cache" ||
				r.header.Get("Content-Type") != "application/json" {
				t.Errorf("headers %v", r.header)
			}
			if !strings.EqualFold(r.TokenType, "bearer") || r.ExpiresIn != 300 {
				t.Errorf("type %q, expires in %v s", r.TokenType, r.ExpiresIn)
			}
			if strings.Contains(r.raw, "refresh_token") {
				t.Error("got a refresh token")
			}
			header, payload := bearer(t, r.AccessToken)
			if header["typ"] != "at+jwt" || header["alg"] != "ES256" || header["kid"] == "" {
				t.Errorf("header %v", header)
			}
			for claim, want := range map[string]any{
				"iss": f.base, "sub": "app", "client_id": "app", "aud": audience, "scope": everything,
				"iat": float64(start().Unix()), "exp": float64(start().Unix() + 300),
			} {
				if payload[claim] != want {
					t.Errorf("%s is %v, want %v", claim, payload[claim], want)
				}
			}
			if payload["jti"] == "" || payload["jti"] == nil {
				t.Error("no jti")
			}
		})
	}
}

// The API's verifier accepts the token with the published key set.
func TestTokensVerifyThroughTheKeySet(t *testing.T) {
	f := newFixture(t, func(c *tokenapi.Config) { c.Lifetime = time.Minute })
	f.app("system/Patient.rs")
	r := f.ask("system/*.read")
	wantToken(t, r, "system/Patient.read")
	verifier, err := token.NewVerifier(token.Config{Now: f.clock.Now, Issuers: []token.Issuer{{
		Name: f.base, Audiences: []string{audience}, JWKSURL: f.base + "/jwks",
	}}})
	must(t, err)
	defer verifier.Close()
	principal, err := verifier.Verify(t.Context(), r.AccessToken)
	must(t, err)
	if principal.Owner != (export.Owner{Issuer: f.base, Subject: "app"}) || !principal.Scopes.MayRead("Patient") ||
		principal.Scopes.MayRead("Observation") || !principal.Expires.Equal(start().Add(time.Minute)) {
		t.Errorf("%+v", principal)
	}
	var set struct{ Keys []map[string]string }
	header := get(t, f.base+"/jwks", "application/jwk-set+json", &set)
	if header.Get("Cache-Control") != "public, max-age=300" || len(set.Keys) != 1 || set.Keys[0]["d"] != "" {
		t.Errorf("%v %v", header, set)
	}
}

func TestB13ToB17Requests(t *testing.T) {
	f := newFixture(t, nil)
	f.app(everything)
	for name, test := range map[string]struct {
		parameter, value string // "-" is removed
		status           int
		code             string
	}{
		"B-13 grant_type missing":            {"grant_type", "-", 400, "invalid_request"},
		"B-13 grant_type empty":              {"grant_type", "", 400, "invalid_request"},
		"B-13 grant_type unknown":            {"grant_type", "not_a_grant_type", 400, "unsupported_grant_type"},
		"B-13 grant_type of a user":          {"grant_type", "password", 400, "unsupported_grant_type"},
		"B-14 client_assertion_type missing": {"client_assertion_type", "-", 400, "invalid_request"},
		"B-14 client_assertion_type wrong":   {"client_assertion_type", "urn:x", 400, "invalid_request"},
		"B-15 client_assertion missing":      {"client_assertion", "-", 400, "invalid_request"},
		"B-15 client_assertion no JWT":       {"client_assertion", "not-a-jwt", 400, "invalid_client"},
		"B-16 scope missing":                 {"scope", "-", 400, "invalid_scope"},
		"B-16 scope unparsable":              {"scope", "\x01 {}", 400, "invalid_scope"},
		"client_id of another":               {"client_id", "somebody", 400, "invalid_client"},
		"client_secret in body":              {"client_secret", "s", 400, "invalid_request"},
	} {
		t.Run(name, func(t *testing.T) {
			form := f.form(f.asserted(nil), everything)
			if form.Set(test.parameter, test.value); test.value == "-" {
				form.Del(test.parameter)
			}
			wantError(t, f.post(form), test.status, test.code)
		})
	}
	form := url.Values{"grant_type": {"client_credentials"}, "scope": {everything}} // no proof at all
	wantError(t, f.post(form), 400, "invalid_request")
	form = f.form(f.asserted(nil), everything)
	form.Set("client_id", "app")
	form.Set("something", "ignored")
	wantToken(t, f.post(form), everything)
}

func TestB21AnAssertionIsUsedOnce(t *testing.T) {
	f := newFixture(t, nil)
	f.app(everything)
	f.other("other")
	claims := f.claims()
	form := f.form(f.asserted(claims), everything)
	wantToken(t, f.post(form), everything)
	wantError(t, f.post(form), 400, "invalid_client")
	// Another assertion with the same jti is refused while the first one would still be valid.
	wantError(t, f.post(f.form(f.asserted(claims.With("exp", start().Add(5*time.Minute).Unix())), everything)), 400, "invalid_client")
	// Another client may use the same jti.
	others := claims.With("iss", "other").With("sub", "other")
	wantToken(t, f.post(f.form(f.assertedByB(others), everything)), everything)

	// An assertion with an invalid signature consumes no jti.
	claims = f.claims()
	wantError(t, f.post(f.form(f.assertedByB(claims), everything)), 400, "invalid_client")
	wantToken(t, f.post(f.form(f.asserted(claims), everything)), everything)

	// A request with an invalid scope does not consume its assertion either.
	form = f.form(f.asserted(nil), "launch")
	wantError(t, f.post(form), 400, "invalid_scope")
	form.Set("scope", everything)
	wantToken(t, f.post(form), everything)
}

// A replica whose clock is a quarter of an hour behind that of another one refuses the assertion too.
func TestB21ClockBehind(t *testing.T) {
	f, redis := embeddedFixture(t)
	f.app(everything)
	claims := f.claims()
	form := f.form(f.asserted(claims.With("exp", start().Add(5*time.Minute).Unix())), everything)
	wantToken(t, f.post(form), everything)
	redis.FastForward(6*time.Minute + 15*time.Minute - time.Second)
	wantError(t, f.post(form), 400, "invalid_client")
}

func TestB21ConcurrentUses(t *testing.T) {
	f := newFixture(t, nil)
	f.app(everything)
	form := f.form(f.asserted(nil), everything)
	var given atomic.Int64
	var all sync.WaitGroup
	for range 16 {
		all.Go(func() {
			if f.post(form).status == http.StatusOK {
				given.Add(1)
			}
		})
	}
	all.Wait()
	if given.Load() != 1 {
		t.Errorf("%d tokens for one assertion", given.Load())
	}
}

// a switch allows replay for test suites.
func TestB21Switch(t *testing.T) {
	f := newFixture(t, func(c *tokenapi.Config) { c.AllowReplay = true })
	f.app(everything)
	form := f.form(f.asserted(nil), everything)
	wantToken(t, f.post(form), everything)
	wantToken(t, f.post(form), everything)
}

func TestB25AndB26KeySetByURL(t *testing.T) {
	server := tokentest.ServeKeys(t, "")
	serve := func(cacheControl string, keys ...members) {
		server.Handle(func(rw http.ResponseWriter, _ *http.Request) {
			rw.Header().Set("Cache-Control", cacheControl)
			_, _ = rw.Write(jwks(keys...))
		})
	}
	count := func(want int64) {
		t.Helper()
		if n := server.Asked(); n != want {
			t.Errorf("%d requests for the key set, want %d", n, want)
		}
	}
	serve("max-age=60", jwkOf("e", keys().ec))
	f := newFixture(t, nil)
	f.register(token.Client{ID: "app", JWKSURL: server.URL})
	newer := func() reply {
		return f.post(f.form(forge("ES384", keys().ecB, `{"alg":"ES384","kid":"new"}`, f.claims().String()), everything))
	}
	withJKU := func(jku string) reply {
		return f.post(f.form(forge("ES384", keys().ec, `{"alg":"ES384","kid":"e","jku":"`+jku+`"}`, f.claims().String()), everything))
	}
	wantToken(t, f.ask(everything), everything)
	wantToken(t, f.ask(everything), everything)
	wantToken(t, withJKU(server.URL), everything) // B-24: the registered one
	count(1)

	// An unknown key causes a fetch at most once a minute.
	wantError(t, newer(), 400, "invalid_client")
	count(1)
	f.clock.Advance(60 * time.Second)
	serve("no-store", jwkOf("new", keys().ecB))
	wantToken(t, newer(), everything)
	wantError(t, f.ask(everything), 400, "invalid_client") // a withdrawn key
	count(2)
	f.clock.Advance(5 * time.Second)
	wantError(t, f.ask(everything), 400, "invalid_client")
	count(3)
}

func TestB27ToB37Scopes(t *testing.T) {
	f := newFixture(t, nil)
	ask := func(registered, asked string) reply {
		f.app(registered)
		defer func() { must(t, f.store.RemoveClient(t.Context(), "app")) }()
		return f.ask(asked)
	}
	for _, test := range []struct{ row, registered, asked, granted string }{
		{"B-27", "system/Patient.rs system/Observation.rs", "system/*.rs", "system/Patient.rs system/Observation.rs"},
		{"B-27", "system/Patient.rs", "system/Patient.rs system/Observation.rs", "system/Patient.rs"},
		{"B-27", "system/*.read", "system/Patient.rs", "system/Patient.rs"},
		{"B-29", everything, "system/*.read", "system/*.read"},
		{"B-29", everything, "system/Patient.read", "system/Patient.read"},
		{"B-30", everything, "system/*.*", "system/*.read"},
		{"B-30", everything, "system/Patient.*", "system/Patient.read"},
		{"B-31", everything, "system/*.rs", "system/*.rs"},
		{"B-31", everything, "system/Patient.rs", "system/Patient.rs"},
		{"B-31", everything, "system/Patient.r", "system/Patient.r"},
		{"B-32", everything, "system/*.cruds", "system/*.rs"},
		{"B-32", everything, "system/*.crud", "system/*.r"},
		{"B-36", everything, "system/Patient.read system/Observation.rs", "system/Patient.read system/Observation.rs"},
		{"twice", everything, "system/Patient.rs  system/Patient.rs", "system/Patient.rs"},
	} {
		r := ask(test.registered, test.asked)
		wantToken(t, r, test.granted)
		if _, payload := bearer(t, r.AccessToken); payload["scope"] != test.granted {
			t.Errorf("%s: the token's scope is %v", test.row, payload["scope"])
		}
	}
	refused := map[string][]string{
		"B-28": {"launch fhirUser", "", " ", "openid system/*.rs"},
		"Z-12": {"patient/Patient.rs", "user/Patient.read", "patient/*.*"},
		"B-31": {"system/Patient.rr", "system/Patient.sr"},
		"B-33": {
			"system/Patient.write", "system/Patient.c", "system/Patient.cu", "system/Patient.cud", "system/Patient.u",
			"system/Patient.d",
		},
		"Z-11": {"system/Patient.s"},
		"B-34": {
			"system/Patient.unknownAction", "system/Patient.xyz", "system/Patient.dus", "system/Patient.", "system/Patient",
		},
		"B-35": {"system/UnknownResource.read", "system/UnknownResource.r"},
		"B-37": {"system/Patient.rs?a=b", "system/*.rs system/Observation.rs?category=laboratory"},
	}
	for row, all := range refused {
		for _, asked := range all {
			r := ask(everything, asked)
			wantError(t, r, 400, "invalid_scope")
			if word := strings.TrimSpace(asked); word != "" && strings.Contains(r.raw, word) {
				t.Errorf("%s: the response repeats the scope: %s", row, r.raw)
			}
		}
	}
	wantError(t, ask("system/Patient.rs", "system/Observation.rs"), 400, "invalid_scope") // B-27
}

// A removal or a change of a client applies to the next token.
func TestRegistrationsApplyAtOnce(t *testing.T) {
	f := newFixture(t, nil)
	wantError(t, f.ask(everything), 400, "invalid_client")
	f.app("system/Patient.rs")
	wantToken(t, f.ask(everything), "system/Patient.rs")
	must(t, f.store.RemoveClient(t.Context(), "app"))
	wantError(t, f.ask(everything), 400, "invalid_client")
	f.app("system/Group.rs")
	wantToken(t, f.ask(everything), "system/Group.rs")
}
