package token_test

import (
	"crypto/elliptic"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/token"
)

// Tokens of known providers in a client credentials grant, with their headers and claims. All values are synthetic.
func TestTokensOfProviders(t *testing.T) {
	key := rsaKey(2048)
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
	const (
		keycloakHeader = `{"alg":"RS256","typ" : "JWT","kid" : "k"}`
		azureHeader    = `{"typ":"JWT","alg":"RS256","kid":"k"}`
		oktaHeader     = `{"kid":"k","alg":"RS256"}`
	)
	byClient, byOID, byApp := token.Issuer{SubjectClaim: "cid"}, token.Issuer{SubjectClaim: "oid"}, token.Issuer{SubjectClaim: "appid"}
	byOID.ScopeClaim, byOID.RequiredClaims, byApp.ScopeClaim = "roles", map[string]string{"idtyp": "app"}, "roles"
	roles, bearers := token.Issuer{ScopeClaim: "roles"}, token.Issuer{RequiredClaims: map[string]string{"typ": "Bearer"}}
	bearersByClient, apps := bearers, token.Issuer{RequiredClaims: map[string]string{"idtyp": "app"}}
	bearersByClient.SubjectClaim = "azp"
	people := token.Issuer{SubjectClaim: "azp", ScopeClaim: "scp", RequiredClaims: map[string]string{"idtyp": "app"}}
	scp, scpByClient := token.Issuer{ScopeClaim: "scp"}, token.Issuer{ScopeClaim: "scp", SubjectClaim: "cid"}
	permissions := token.Issuer{ScopeClaim: "permissions", SubjectClaim: "client_id"}
	person, service := keycloak["sub"].(string), azure["sub"].(string)
	rfc9068 := auth0.With("client_id", "abc").With("permissions", []string{"system/Patient.r"})
	for name, test := range map[string]struct {
		issuer  token.Issuer
		header  string
		claims  members
		subject string // "" when the token is refused
		reads   string // "" for nothing
	}{
		"Keycloak":                     {token.Issuer{}, keycloakHeader, keycloak, person, "Observation"},
		"Keycloak, no client scope":    {token.Issuer{}, keycloakHeader, keycloak.With("scope", "profile email"), person, ""},
		"Keycloak, no audience mapper": {token.Issuer{}, keycloakHeader, keycloak.With("aud", "account"), "", ""},
		"Keycloak, by client":          {bearersByClient, keycloakHeader, keycloak, "research-exporter", "Observation"},
		"Keycloak, an ID token":        {bearers, keycloakHeader, keycloak.With("typ", "ID"), "", ""},
		"Keycloak, bound to a key":     {token.Issuer{}, keycloakHeader, keycloak.With("cnf", members{"jkt": "x"}), "", ""},
		"Azure v2":                     {byOID, azureHeader, azure, azure["oid"].(string), "Patient"},
		"Azure v2, roles not named":    {token.Issuer{}, azureHeader, azure, service, ""},
		"Azure v1": {
			byApp, `{"typ":"JWT","alg":"RS256","x5t":"k","kid":"k"}`, azureV1, azure["azp"].(string), "Patient",
		},
		"Azure, a person's token": {
			people, azureHeader, azure.Without("roles").With("scp", "user/*.rs").With("idtyp", "user"), "", "",
		},
		"Azure, no idtyp": {apps, azureHeader, azure.Without("idtyp"), "", ""},
		"Azure, roles in one string": {
			roles, azureHeader, azure.With("roles", "system/Patient.rs system/Group.rs"), service, "Patient",
		},
		"Azure, no roles":        {roles, azureHeader, azure.Without("roles").With("scope", "system/*.rs"), service, ""},
		"Azure, roles an object": {roles, azureHeader, azure.With("roles", members{}), "", ""},
		"Okta":                   {scpByClient, oktaHeader, okta, "0oa1exporter", "Observation"},
		"Okta, its own typ":      {scp, `{"kid":"k","typ":"application/okta-internal-at+jwt","alg":"RS256"}`, okta, "", ""},
		"Okta, no cid":           {scpByClient, oktaHeader, okta.Without("cid"), "", ""},
		"Okta, cid an array":     {byClient, oktaHeader, okta.With("cid", []string{"a"}), "", ""},
		"Okta, cid very long":    {byClient, oktaHeader, okta.With("cid", strings.Repeat("x", 1025)), "", ""},
		"Auth0":                  {token.Issuer{}, azureHeader, auth0, "abc@clients", "Observation"},
		"Auth0, RFC 9068":        {permissions, `{"alg":"RS256","typ":"at+jwt","kid":"k"}`, rfc9068, "abc", "Patient"},
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

// OpenID Connect Discovery 4: the issuer's document names the key set.
func TestDiscovery(t *testing.T) {
	key := ecKey(elliptic.P256())
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
	v := verifierWith(t, newClock(), func(r *http.Request) (*http.Response, error) {
		if r.URL.Host != "issuer.example" {
			return http.DefaultTransport.RoundTrip(r)
		}
		return respond(document("https://issuer.example", trap.URL))
	}, token.Issuer{Name: "https://issuer.example", Audiences: []string{audience}, Discovery: true})
	refused(t, v, sign("ES256", "k", ecKey(elliptic.P256()), goodClaims().With("iss", "https://issuer.example")),
		export.ErrUnavailable)
	asked(t, trap, 0)
}

func document(issuer, keys string) string {
	return members{
		"issuer": issuer, "jwks_uri": keys, "token_endpoint": issuer + "/token", "subject_types_supported": []string{"public"},
	}.String()
}
