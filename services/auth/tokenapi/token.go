package tokenapi

import (
	"crypto/rand"
	"errors"
	"net/http"
	"time"

	"github.com/sluice-fhir/sluice/pkg/token"
)

// answer is a token given (RFC 6749 section 5.1). There is no refresh token: a client can always ask again.
type answer struct {
	AccessToken string `json:"access_token"`
	TokenType   string `json:"token_type"`
	ExpiresIn   int64  `json:"expires_in"` // seconds
	Scope       string `json:"scope"`      // what was granted, which may be less than was asked for
}

// token is the token endpoint.
func (s *Service) token(w http.ResponseWriter, r *http.Request) {
	given, client, refused := s.grant(w, r)
	if err := s.audit(r, client, given.Scope, refused); err != nil {
		given, refused = answer{}, unavailable(err) // no token that is not on record
	}
	s.record(r.Context(), client, refused)
	if refused != nil {
		refused.write(w)
		return
	}
	writeJSON(w, http.StatusOK, given)
}

// grant goes through a request: its form, who asks, what they get. What can be told from the request alone is told
// before an assertion is spent. client is who was asked for as far as that was proved, "" otherwise.
func (s *Service) grant(w http.ResponseWriter, r *http.Request) (given answer, client string, refused *problem) {
	if r.Method != http.MethodPost {
		return answer{}, "", notAllowed(w, http.MethodPost)
	}
	form, refused := readForm(w, r)
	if refused != nil {
		return answer{}, "", refused
	}
	switch form["grant_type"] {
	case "client_credentials":
	case "":
		return answer{}, "", invalidRequest("grant_type is missing")
	default:
		return answer{}, "", &problem{
			status: http.StatusBadRequest, code: "unsupported_grant_type", text: "grant_type must be client_credentials",
		}
	}
	proof, refused := s.readProof(r, form)
	if refused != nil {
		return answer{}, "", refused
	}
	if err := token.CheckScopes(form["scope"]); err != nil {
		return answer{}, "", invalidScope(err)
	}
	who, refused := s.authenticate(r.Context(), proof, s.address(r))
	if refused != nil {
		return answer{}, "", refused
	}
	scope, err := token.NarrowScopes(form["scope"], who.Scope)
	if errors.Is(err, token.ErrScope) {
		return answer{}, who.ID, invalidScope(err)
	}
	if err != nil {
		return answer{}, who.ID, broken(err)
	}
	given, err = s.sign(who.ID, scope)
	if err != nil {
		return answer{}, who.ID, unavailable(err)
	}
	return given, who.ID, nil
}

func invalidScope(err error) *problem {
	return &problem{status: http.StatusBadRequest, code: "invalid_scope", text: "scope: " + err.Error()}
}

// sign makes the access token (RFC 9068).
func (s *Service) sign(client, scope string) (answer, error) {
	state := s.state.Load()
	if state == nil {
		return answer{}, errors.New("no keys to sign with")
	}
	now, life := s.cfg.Now().Unix(), int64(s.cfg.Life/time.Second)
	signed, err := state.signer.Sign("at+jwt", map[string]any{
		"iss": s.issuer, "sub": client, "client_id": client, "aud": s.cfg.Audience, "scope": scope,
		"iat": now, "exp": now + life, "jti": rand.Text(),
	})
	return answer{AccessToken: signed, TokenType: "bearer", ExpiresIn: life, Scope: scope}, err
}
