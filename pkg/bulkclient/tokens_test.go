package bulkclient

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

// issuing is a token endpoint, and the FHIR server that announces it.
type issuing struct {
	*httptest.Server
	asked    atomic.Int64
	answer   http.HandlerFunc // in place of a token, when it is set
	endpoint string           // the token_endpoint of discovery
}

func newIssuing(t *testing.T) *issuing {
	s := &issuing{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/fhir/.well-known/smart-configuration":
			_ = json.NewEncoder(w).Encode(map[string]string{"token_endpoint": s.endpoint})
		case s.answer != nil:
			s.asked.Add(1)
			s.answer(w, r)
		default:
			n := s.asked.Add(1)
			if r.Method != http.MethodPost || r.URL.RawQuery != "" || r.PostFormValue("grant_type") != "client_credentials" ||
				r.PostFormValue("client_assertion") != "for "+s.URL+"/token" || r.PostFormValue("scope") != "system/*.rs" ||
				r.PostFormValue("client_assertion_type") != assertionType || r.PostFormValue("resource") != s.URL+"/fhir" {
				t.Errorf("invalid token request: %s %v", r.Method, r.PostForm)
			}
			_ = json.NewEncoder(w).Encode(map[string]any{
				"access_token": "token-" + strconv.FormatInt(n, 10), "token_type": "Bearer", "expires_in": 300,
			})
		}
	}))
	t.Cleanup(s.Close)
	s.endpoint = s.URL + "/token"
	return s
}

func (s *issuing) source(t *testing.T, now func() time.Time, tokenURL string) TokenSource {
	t.Helper()
	source, err := NewTokenSource(Credentials{
		Base: s.URL + "/fhir/", TokenURL: tokenURL, Scope: "system/*.rs", Now: now,
		Assert: func(endpoint string) (string, error) { return "for " + endpoint, nil },
	})
	must(t, err)
	return source
}

// TestCredentialTokens covers conformance B-39: tokens are fetched on first use, at half of their lifetime, and when the
// server refuses one.
func TestCredentialTokens(t *testing.T) {
	now := time.Now()
	clock := func() time.Time { return now }
	for name, discovered := range map[string]bool{"named": false, "discovered": true} {
		t.Run(name, func(t *testing.T) {
			s := newIssuing(t)
			tokenURL := s.endpoint
			if discovered {
				tokenURL = ""
			}
			source := s.source(t, clock, tokenURL)
			wants := func(refused, want string) {
				t.Helper()
				got, err := source.Token(t.Context(), refused)
				if err != nil || got != want {
					t.Errorf("got %q, %v, want %q", got, err, want)
				}
			}
			wants("", "token-1")
			wants("", "token-1")
			now = now.Add(149 * time.Second)
			wants("", "token-1")
			now = now.Add(2 * time.Second)
			wants("", "token-2")
			wants("token-1", "token-2") // the refused token was no longer in use
			wants("token-2", "token-3")
		})
	}
}

func TestCredentialTokensRefused(t *testing.T) {
	elsewhere := newIssuing(t)
	for name, test := range map[string]struct {
		answer   http.HandlerFunc
		contains string
		passes   bool
	}{
		"invalid_client": {func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(400)
			_, _ = w.Write([]byte(`{"error":"invalid_client","error_description":"who\u001b is this"}`))
		}, "who is this (invalid_client)", false},
		"down": {func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) }, "503", true},
		"no token": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"token_type":"bearer"}`))
		}, "no bearer token", false},
		"another kind": {func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"access_token":"x","token_type":"mac"}`))
		}, "no bearer token", false},
		"redirected": {http.RedirectHandler(elsewhere.endpoint, http.StatusTemporaryRedirect).ServeHTTP, "redirects", false},
	} {
		t.Run(name, func(t *testing.T) {
			s := newIssuing(t)
			s.answer = test.answer
			_, err := s.source(t, time.Now, s.endpoint).Token(t.Context(), "")
			if err == nil || !strings.Contains(err.Error(), test.contains) || strings.Contains(err.Error(), "\x1b") {
				t.Fatalf("%v, want %q", err, test.contains)
			}
			if _, again := retryIn(err, 1); again != test.passes {
				t.Errorf("%v is tried again: %v", err, again)
			}
		})
	}
	if elsewhere.asked.Load() != 0 {
		t.Error("the client sent an assertion to a redirect target")
	}
}

// An assertion is sent over https or to this machine only.
func TestAssertionsNeedHTTPS(t *testing.T) {
	for url, want := range map[string]bool{
		"https://auth.example/token": true, "http://127.0.0.1:1/token": true, "http://auth.example/token": false,
		"ftp://auth.example/token": false, "/token": false, "https://u:p@auth.example/token": false,
	} {
		_, err := NewTokenSource(Credentials{TokenURL: url, Now: time.Now})
		if (err == nil) != want {
			t.Errorf("%s: %v", url, err)
		}
	}
	s := newIssuing(t)
	s.endpoint = "http://auth.example/token"
	if _, err := s.source(t, time.Now, "").Token(t.Context(), ""); !errors.Is(err, ErrInsecureHTTP) {
		t.Errorf("discovered plain http endpoint: %v", err)
	}
	s.endpoint = ""
	if _, err := s.source(t, time.Now, "").Token(t.Context(), ""); err == nil {
		t.Error("got a token from a server without a token_endpoint")
	}
}

// TestExpiresIn: a number may be in quotes or have a fraction, and a token without a lifetime is used for minutes, not for
// one request.
func TestExpiresIn(t *testing.T) {
	for member, want := range map[string]time.Duration{
		`"expires_in":3000`: 3000 * time.Second, `"expires_in":"300"`: 300 * time.Second, `"expires_in":299.5`: 299 * time.Second,
		`"expires_in":1e9`: time.Hour, `"x":1`: unknownLife, `"expires_in":null`: unknownLife, `"expires_in":"soon"`: unknownLife,
		`"expires_in":0`: unknownLife, `"expires_in":-5`: unknownLife, `"expires_in":{}`: unknownLife,
		`"expires_in":"NaN"`: unknownLife,
	} {
		s := newIssuing(t)
		s.answer = func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write([]byte(`{"access_token":"x","token_type":"bEARER",` + member + `}`))
		}
		now := time.Now()
		source := s.source(t, func() time.Time { return now }, s.endpoint)
		for _, step := range []struct {
			later time.Duration
			asked int64
		}{{0, 1}, {want/2 - 1, 1}, {1, 2}} {
			now = now.Add(step.later)
			if _, err := source.Token(t.Context(), ""); err != nil || s.asked.Load() != step.asked {
				t.Errorf("%s: %d requests, want %d, %v", member, s.asked.Load(), step.asked, err)
			}
		}
	}
}

// TestClientSecret: a client with a secret uses HTTP Basic, and no assertion.
func TestClientSecret(t *testing.T) {
	s := newIssuing(t)
	s.answer = func(w http.ResponseWriter, r *http.Request) {
		id, secret, _ := r.BasicAuth()
		if id != "a%3Ab" || secret != "s+%2F" || r.PostFormValue("client_assertion") != "" ||
			r.PostFormValue("grant_type") != "client_credentials" {
			t.Errorf("asked with %q, %q, %v", id, secret, r.PostForm)
		}
		_, _ = w.Write([]byte(`{"access_token":"x","token_type":"bearer","expires_in":"1200"}`))
	}
	source, err := NewTokenSource(Credentials{
		Base: s.URL, TokenURL: s.endpoint, ClientID: "a:b", Secret: func() (string, error) { return "s /", nil }, Now: time.Now,
	})
	must(t, err)
	if token, err := source.Token(t.Context(), ""); err != nil || token != "x" {
		t.Errorf("%q, %v", token, err)
	}
}

// TestTokenOfAnotherServer: a server that leads the client to the token service of another gets no token of it.
func TestTokenOfAnotherServer(t *testing.T) {
	jwt := func(claims string) string {
		return "eyJhbGciOiJub25lIn0." + base64.RawURLEncoding.EncodeToString([]byte(claims)) + ".c2ln"
	}
	const self = "SELF"
	for token, good := range map[string]bool{
		"opaque": true, "a.b.c": true, jwt(`{}`): true, jwt(`[]`): true, jwt(`{"aud":"client-id"}`): true,
		jwt(`{"aud":["account","urn:x:y"]}`): true, jwt(`{"aud":7}`): true,
		jwt(`{"aud":"SELF/fhir"}`): true, jwt(`{"aud":["https://other.example/fhir","SELF"]}`): true,
		jwt(`{"aud":"https://other.example/fhir"}`):          false,
		jwt(`{"aud":["https://other.example/fhir","demo"]}`): false,
	} {
		for _, anyAudience := range []bool{false, true} {
			s := newIssuing(t)
			s.answer = func(w http.ResponseWriter, r *http.Request) {
				if sent := r.PostFormValue("resource") != ""; sent == anyAudience {
					t.Errorf("resource sent: %t", sent)
				}
				text := token
				if parts := strings.Split(token, "."); len(parts) == 3 {
					claims, _ := base64.RawURLEncoding.DecodeString(parts[1])
					text = jwt(strings.ReplaceAll(string(claims), self, s.URL))
				}
				_ = json.NewEncoder(w).Encode(map[string]string{"access_token": text})
			}
			source, err := NewTokenSource(Credentials{
				Base: s.URL + "/fhir", TokenURL: s.endpoint, Now: time.Now, AnyAudience: anyAudience,
				Assert: func(string) (string, error) { return "x", nil },
			})
			must(t, err)
			_, err = source.Token(t.Context(), "")
			if want := good || anyAudience; (err == nil) != want || !want && !errors.Is(err, ErrForeignToken) {
				t.Errorf("%s, any audience %t: %v", token, anyAudience, err)
			}
		}
	}
	genuine, evil := newIssuing(t), newIssuing(t)
	evil.endpoint = genuine.endpoint
	if _, err := evil.source(t, time.Now, "").Token(t.Context(), ""); !errors.Is(err, ErrForeignEndpoint) {
		t.Errorf("discovered on another origin: %v", err)
	}
	if genuine.asked.Load() != 0 {
		t.Error("an assertion was sent to the other token service")
	}
}
