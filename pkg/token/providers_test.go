package token_test

import (
	"crypto/elliptic"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/token"
)

// Tokens of known providers in a client credentials grant, with their headers and claims. All values are synthetic.
func TestTokensOfProviders(t *testing.T) {
	key := rsaKey(t, 2048)
	now, end := start().Unix(), start().Unix()+300
	keycloak := members{
		"iss": "https://login.example.org/realms/health", "sub": "8f0d3c0e-2b1a-4a55-9c7f-3d3f1f0a9b11", "typ": "Bearer",
		"azp": "research-exporter", "client_id": "research-exporter", "jti": "trrtcc:6a1f0c9a", "acr": "1", "exp": end, "iat": now,
		"aud": []string{audience, "account"}, "scope": "profile email system/*.rs", "allowed-origins": []string{"/*"},
		"realm_access":    members{"roles": []string{"offline_access", "default-roles-health"}},
		"resource_access": members{"account": members{"roles": []string{"manage-account"}}},
		"email_verified":  false, "clientHost": "192.0.2.7", "clientAddress": "192.0.2.7",
		"preferred_username": "service-account-research-exporter",
	}
	azure := members{
		"iss": "https://login.microsoftonline.com/11111111-aaaa-4bbb-8ccc-222222222222/v2.0",
		"aud": "33333333-aaaa-4bbb-8ccc-444444444444", "iat": now, "nbf": now, "exp": end, "aio": "k2RgYDh", "ver": "2.0",
		"azp": "55555555-aaaa-4bbb-8ccc-666666666666", "azpacr": "2", "idtyp": "app",
		"oid": "77777777-aaaa-4bbb-8ccc-888888888888", "sub": "77777777-aaaa-4bbb-8ccc-888888888888",
		"tid": "11111111-aaaa-4bbb-8ccc-222222222222", "uti": "x", "rh": "0.x",
		"roles": []string{"system/Patient.rs", "system/Group.rs"},
	}
	azureV1 := azure.With("iss", "https://sts.windows.net/11111111-aaaa-4bbb-8ccc-222222222222/").With("ver", "1.0").
		With("aud", "api://sluice").With("appid", azure["azp"]).With("appidacr", "2").Without("azp").Without("azpacr")
	okta := members{
		"ver": 1, "jti": "AT.made-up", "iss": "https://example.okta.com/oauth2/aus1", "aud": audience, "iat": now, "exp": end,
		"cid": "0oa1exporter", "scp": []string{"system/*.rs"}, "sub": "0oa1exporter",
	}
	auth0 := members{
		"iss": "https://example.auth0.com/", "sub": "abc@clients", "aud": audience, "iat": now, "exp": end,
		"scope": "system/*.rs", "gty": "client-credentials", "azp": "abc",
	}
	for name, test := range map[string]struct {
		issuer  token.Issuer
		header  string
		claims  members
		subject string // "" when the token is refused
		reads   string // "" for nothing
	}{
		"Keycloak": {
			token.Issuer{}, `{"alg":"RS256","typ" : "JWT","kid" : "k"}`, keycloak, keycloak["sub"].(string), "Observation",
		},
		"Keycloak, without the client scope": {
			token.Issuer{}, `{"alg":"RS256","typ" : "JWT","kid" : "k"}`, keycloak.With("scope", "profile email"),
			keycloak["sub"].(string), "",
		},
		"Keycloak, without the audience mapper": {
			token.Issuer{}, `{"alg":"RS256","typ" : "JWT","kid" : "k"}`, keycloak.With("aud", "account"), "", "",
		},
		"Keycloak, by client": {
			token.Issuer{SubjectClaim: "azp", RequiredClaims: map[string]string{"typ": "Bearer"}},
			`{"alg":"RS256","typ" : "JWT","kid" : "k"}`, keycloak, "research-exporter", "Observation",
		},
		"Keycloak, an ID token": {
			token.Issuer{RequiredClaims: map[string]string{"typ": "Bearer"}}, `{"alg":"RS256","typ" : "JWT","kid" : "k"}`,
			keycloak.With("typ", "ID"), "", "",
		},
		"Keycloak, bound to a key": {
			token.Issuer{}, `{"alg":"RS256","typ" : "JWT","kid" : "k"}`, keycloak.With("cnf", members{"jkt": "x"}), "", "",
		},
		"Azure v2": {
			token.Issuer{SubjectClaim: "oid", ScopeClaim: "roles", RequiredClaims: map[string]string{"idtyp": "app"}},
			`{"typ":"JWT","alg":"RS256","kid":"k"}`, azure, azure["oid"].(string), "Patient",
		},
		"Azure v2, roles not named": {token.Issuer{}, `{"typ":"JWT","alg":"RS256","kid":"k"}`, azure, azure["sub"].(string), ""},
		"Azure v1": {
			token.Issuer{SubjectClaim: "appid", ScopeClaim: "roles"}, `{"typ":"JWT","alg":"RS256","x5t":"k","kid":"k"}`, azureV1,
			azure["azp"].(string), "Patient",
		},
		"Azure, a person's token": {
			token.Issuer{SubjectClaim: "azp", ScopeClaim: "scp", RequiredClaims: map[string]string{"idtyp": "app"}},
			`{"typ":"JWT","alg":"RS256","kid":"k"}`, azure.Without("roles").With("scp", "user/*.rs").With("idtyp", "user"), "", "",
		},
		"Azure, no idtyp": {
			token.Issuer{RequiredClaims: map[string]string{"idtyp": "app"}}, `{"typ":"JWT","alg":"RS256","kid":"k"}`,
			azure.Without("idtyp"), "", "",
		},
		"Azure, roles in one string": {
			token.Issuer{ScopeClaim: "roles"}, `{"typ":"JWT","alg":"RS256","kid":"k"}`,
			azure.With("roles", "system/Patient.rs system/Group.rs"), azure["sub"].(string), "Patient",
		},
		"Azure, no roles": {
			token.Issuer{ScopeClaim: "roles"}, `{"typ":"JWT","alg":"RS256","kid":"k"}`,
			azure.Without("roles").With("scope", "system/*.rs"), azure["sub"].(string), "",
		},
		"Azure, roles an object": {
			token.Issuer{ScopeClaim: "roles"}, `{"typ":"JWT","alg":"RS256","kid":"k"}`, azure.With("roles", members{}), "", "",
		},
		"Okta": {
			token.Issuer{ScopeClaim: "scp", SubjectClaim: "cid"}, `{"kid":"k","alg":"RS256"}`, okta, "0oa1exporter", "Observation",
		},
		"Okta, application/okta-internal": {
			token.Issuer{ScopeClaim: "scp"}, `{"kid":"k","typ":"application/okta-internal-at+jwt","alg":"RS256"}`, okta, "", "",
		},
		"Okta, no cid": {
			token.Issuer{ScopeClaim: "scp", SubjectClaim: "cid"}, `{"kid":"k","alg":"RS256"}`, okta.Without("cid"), "", "",
		},
		"Okta, cid an array": {
			token.Issuer{SubjectClaim: "cid"}, `{"kid":"k","alg":"RS256"}`, okta.With("cid", []string{"a"}), "", "",
		},
		"Okta, cid very long": {
			token.Issuer{SubjectClaim: "cid"}, `{"kid":"k","alg":"RS256"}`, okta.With("cid", strings.Repeat("x", 1025)), "", "",
		},
		"Auth0": {token.Issuer{}, `{"alg":"RS256","typ":"JWT","kid":"k"}`, auth0, "abc@clients", "Observation"},
		"Auth0, RFC 9068": {
			token.Issuer{ScopeClaim: "permissions", SubjectClaim: "client_id"}, `{"alg":"RS256","typ":"at+jwt","kid":"k"}`,
			auth0.With("client_id", "abc").With("permissions", []string{"system/Patient.r"}), "abc", "Patient",
		},
	} {
		t.Run(name, func(t *testing.T) {
			issuer := test.issuer
			issuer.Name = test.claims["iss"].(string)
			issuer.Audiences = []string{audience, "33333333-aaaa-4bbb-8ccc-444444444444", "api://sluice"}
			issuer.JWKSURL = serveKeys(t, jwks(jwkOf("k", key).With("use", "sig").With("x5t", "k").With("x5c", []string{}))).URL
			p, err := verifier(t, newClock(), issuer).Verify(t.Context(),
				forge("RS256", key, test.header, test.claims.String()))
			if test.subject == "" {
				if !errors.Is(err, token.ErrInvalid) {
					t.Fatalf("owner %+v, error %v, want ErrInvalid", p.Owner, err)
				}
				return
			}
			if want := (export.Owner{Issuer: issuer.Name, Subject: test.subject}); err != nil || p.Owner != want {
				t.Fatalf("owner %+v, error %v, want %+v", p.Owner, err, want)
			}
			for _, typ := range []string{"Patient", "Observation"} {
				if want := typ == test.reads || test.reads == "Observation"; p.Scopes.MayRead(typ) != want {
					t.Errorf("may read %s: %v", typ, !want)
				}
			}
		})
	}
}

// Claims that people choose themselves, or that do not identify a client, cannot be subjects.
func TestMappingRefuses(t *testing.T) {
	for name, change := range map[string]func(*token.Issuer){
		"username":                 func(i *token.Issuer) { i.SubjectClaim = "preferred_username" },
		"email":                    func(i *token.Issuer) { i.SubjectClaim = "email" },
		"iss as subject":           func(i *token.Issuer) { i.SubjectClaim = "iss" },
		"subject in another case":  func(i *token.Issuer) { i.SubjectClaim = "Sub" },
		"name as scope":            func(i *token.Issuer) { i.ScopeClaim = "name" },
		"required without a name":  func(i *token.Issuer) { i.RequiredClaims = map[string]string{"": "x"} },
		"required without a value": func(i *token.Issuer) { i.RequiredClaims = map[string]string{"typ": ""} },
	} {
		issuer := issuerAt("https://issuer.example/jwks")
		change(&issuer)
		if v, err := token.NewVerifier(token.Config{Issuers: []token.Issuer{issuer}}); err == nil {
			v.Close()
			t.Errorf("%s: accepted", name)
		}
	}
}

// OpenID Connect Discovery 4: the issuer's document names the key set.
func TestDiscovery(t *testing.T) {
	key := ecKey(t, elliptic.P256())
	for name, test := range map[string]struct {
		path     string              // of the issuer
		document func(string) string // by the server's URL
		want     error
	}{
		"at the root":     {"", func(at string) string { return document(at, at+"/keys") }, nil},
		"in a realm":      {"/realms/health", func(at string) string { return document(at+"/realms/health", at+"/keys") }, nil},
		"ends in a slash": {"/tenant/", func(at string) string { return document(at+"/tenant/", at+"/keys") }, nil},
		"issuer of another": {"", func(at string) string { return document("https://evil.example", at+"/keys") },
			export.ErrUnavailable},
		"issuer with a slash":  {"", func(at string) string { return document(at+"/", at+"/keys") }, export.ErrUnavailable},
		"no issuer":            {"", func(at string) string { return fmt.Sprintf(`{"jwks_uri":%q}`, at+"/keys") }, export.ErrUnavailable},
		"no jwks_uri":          {"", func(at string) string { return fmt.Sprintf(`{"issuer":%q}`, at) }, export.ErrUnavailable},
		"jwks_uri not https":   {"", func(at string) string { return document(at, "http://keys.example/keys") }, export.ErrUnavailable},
		"jwks_uri a file":      {"", func(at string) string { return document(at, "file:///etc/passwd") }, export.ErrUnavailable},
		"jwks_uri with a user": {"", func(at string) string { return document(at, "https://a:b@keys.example/") }, export.ErrUnavailable},
		"HTML":                 {"", func(string) string { return "<html>" }, export.ErrUnavailable},
		"issuer twice": {"", func(at string) string { return `{"issuer":"x",` + document(at, at+"/keys")[1:] },
			export.ErrUnavailable},
	} {
		t.Run(name, func(t *testing.T) {
			server := serveKeys(t, "")
			wellKnown := strings.TrimSuffix(test.path, "/") + "/.well-known/openid-configuration"
			server.Handle(func(w http.ResponseWriter, r *http.Request) {
				switch r.URL.Path {
				case wellKnown:
					_, _ = fmt.Fprint(w, test.document(server.URL))
				case "/keys":
					_, _ = fmt.Fprint(w, jwks(jwkOf("k", key)))
				default:
					http.NotFound(w, r)
				}
			})
			issuer := token.Issuer{Name: server.URL + test.path, Audiences: []string{audience}, Discovery: true}
			_, err := verifier(t, newClock(), issuer).Verify(t.Context(),
				sign("ES256", "k", key, goodClaims().With("iss", issuer.Name)))
			if !errors.Is(err, test.want) {
				t.Errorf("got error %v, want %v", err, test.want)
			}
		})
	}
}

// A document that came over the network cannot point to this machine.
func TestDiscoveryKeepsOffLoopback(t *testing.T) {
	trap := serveKeys(t, "")
	client := &http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
		if r.URL.Host != "issuer.example" {
			return http.DefaultTransport.RoundTrip(r)
		}
		return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader(document("https://issuer.example", trap.URL)))}, nil
	})}
	v := verifierWith(t, token.Config{
		Issuers: []token.Issuer{{Name: "https://issuer.example", Audiences: []string{audience}, Discovery: true}},
		Now:     newClock().Now, HTTPClient: client,
	})
	refused(t, v, sign("ES256", "k", ecKey(t, elliptic.P256()), goodClaims().With("iss", "https://issuer.example")),
		export.ErrUnavailable)
	asked(t, trap, 0)
}

func document(issuer, keys string) string {
	return members{
		"issuer": issuer, "jwks_uri": keys, "token_endpoint": issuer + "/token", "subject_types_supported": []string{"public"},
	}.String()
}
