package httpapi

import (
	"errors"
	"net/http"
	"strings"

	"github.com/gin-gonic/gin"
	"github.com/sluice-fhir/sluice/pkg/token"
)

const principalKey = "principal"

// authenticate refuses requests without a valid bearer token. It reads the token only from the Authorization header: a
// token in a query string ends up in logs.
func (s *service) authenticate(c *gin.Context) {
	raw := bearer(c.Request.Header)
	if raw == "" {
		s.refuse(c, unauthenticated("Bearer",
			"A bearer token is required: send one Authorization header with the scheme Bearer."))
		return
	}
	principal, err := s.Tokens.Verify(c.Request.Context(), raw)
	if errors.Is(err, token.ErrInvalid) {
		// The reason is only logged: it would help a forger.
		s.refuse(c, unauthenticated(`Bearer error="invalid_token"`,
			"The bearer token in the Authorization header is invalid or expired."))
		return
	}
	if err != nil {
		s.refuse(c, err)
		return
	}
	c.Set(principalKey, principal)
}

// unauthenticated is a 401 with its challenge (RFC 6750 section 3).
func unauthenticated(challenge, text string) refusal {
	return refused(http.StatusUnauthorized, "login", text, "WWW-Authenticate", challenge)
}

// bearer returns the token of the only Authorization header, or "" when there is none, more than one
// (ambiguous), or another scheme. The scheme's case does not matter (RFC 9110 section 11.1).
func bearer(header http.Header) string {
	values := header.Values("Authorization")
	if len(values) != 1 {
		return ""
	}
	scheme, credentials, found := strings.Cut(values[0], " ")
	if !found || !strings.EqualFold(scheme, "Bearer") {
		return ""
	}
	return strings.TrimSpace(credentials)
}

// principalOf returns the authenticated caller. Every route that calls it has authenticate before it.
func principalOf(c *gin.Context) token.Principal {
	return c.MustGet(principalKey).(token.Principal)
}
