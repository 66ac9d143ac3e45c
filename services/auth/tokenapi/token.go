package tokenapi

import (
	"crypto/rand"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/sluice-fhir/sluice/pkg/token"
)

// response is an issued token (RFC 6749 section 5.1). It has no refresh token, because a client can authenticate again.
type response struct {
	AccessToken string `json:"access_token"`
	TokenType   string `json:"token_type"`
	ExpiresIn   int64  `json:"expires_in"` // seconds
	Scope       string `json:"scope"`      // the granted scopes, which may be fewer than requested
}

// token serves the token endpoint.
func (s *Service) token(w http.ResponseWriter, r *http.Request) {
	issued, client, refused := s.grant(w, r)
	if err := s.audit(r, client, issued.Scope, refused); err != nil {
		issued, refused = response{}, unavailable(err) // no token without an audit event
	}
	s.record(r.Context(), client, refused)
	if refused != nil {
		refused.write(w)
		return
	}
	writeJSON(w, http.StatusOK, issued)
}

// grant handles a token request. It checks the whole request before it consumes an assertion. client is "" unless the
// client has authenticated.
func (s *Service) grant(w http.ResponseWriter, r *http.Request) (issued response, client string, refused *problem) {
	if r.Method != http.MethodPost {
		return response{}, "", notAllowed(w, http.MethodPost)
	}
	form, refused := readForm(w, r)
	if refused != nil {
		return response{}, "", refused
	}
	switch form["grant_type"] {
	case "client_credentials":
	case "":
		return response{}, "", invalidRequest("grant_type is missing")
	default:
		return response{}, "", &problem{
			status: http.StatusBadRequest, code: "unsupported_grant_type", text: "grant_type must be client_credentials",
		}
	}
	for resource := range strings.FieldsSeq(form["resource"]) {
		if !sameResource(resource, s.cfg.Audience) {
			return response{}, "", invalidTarget()
		}
	}
	proof, refused := s.readProof(r, form)
	if refused != nil {
		return response{}, "", refused
	}
	if err := token.CheckScopes(form["scope"]); err != nil {
		return response{}, "", invalidScope(err)
	}
	registered, refused := s.authenticate(r.Context(), proof, s.address(r))
	if refused != nil {
		return response{}, "", refused
	}
	scope, err := token.NarrowScopes(form["scope"], registered.Scope)
	if errors.Is(err, token.ErrScope) {
		return response{}, registered.ID, invalidScope(err)
	}
	if err != nil {
		return response{}, registered.ID, broken(err)
	}
	issued, err = s.sign(registered.ID, scope)
	if err != nil {
		return response{}, registered.ID, unavailable(err)
	}
	return issued, registered.ID, nil
}

func invalidScope(err error) *problem {
	return &problem{status: http.StatusBadRequest, code: "invalid_scope", text: "scope: " + err.Error()}
}

// invalidTarget refuses a token for another service (RFC 8707 section 2). Without this a client that was pointed to another
// server would send it a token of this service.
func invalidTarget() *problem {
	return &problem{
		status: http.StatusBadRequest, code: "invalid_target",
		text: "resource: tokens of this service are only for the base URL that it is configured with",
	}
}

// sameResource compares two URLs. The case of scheme and host, a default port and a slash at the end do not matter.
func sameResource(a, b string) bool {
	normal := func(text string) string {
		u, err := url.Parse(text)
		if err != nil || u.Host == "" || u.User != nil || strings.ContainsAny(text, "?#") {
			return ""
		}
		scheme, host := strings.ToLower(u.Scheme), strings.ToLower(u.Host)
		host = strings.TrimSuffix(host, map[string]string{"http": ":80", "https": ":443"}[scheme])
		return scheme + "://" + host + strings.TrimSuffix(u.EscapedPath(), "/")
	}
	return normal(a) != "" && normal(a) == normal(b)
}

// sign signs the access token (RFC 9068).
func (s *Service) sign(client, scope string) (response, error) {
	signer, err := s.deps.Keys.Signer()
	if err != nil {
		return response{}, err
	}
	now, lifetime := s.cfg.Now().Unix(), int64(s.cfg.Lifetime/time.Second)
	signed, err := signer.Sign("at+jwt", map[string]any{
		"iss": s.issuer, "sub": client, "client_id": client, "aud": s.cfg.Audience, "scope": scope,
		"iat": now, "exp": now + lifetime, "jti": rand.Text(),
	})
	return response{AccessToken: signed, TokenType: "bearer", ExpiresIn: lifetime, Scope: scope}, err
}
