package httpapi

import (
	"errors"
	"net/http"
	"strings"

	"github.com/gin-gonic/gin"
	"github.com/sluice-fhir/sluice/pkg/token"
)

const principalKey = "principal"

// The rules for requests without a token, in addition to those of tokens.
const (
	ruleNoToken   token.Rule = "no_token"
	ruleAmbiguous token.Rule = "several_headers"
	ruleScheme    token.Rule = "other_scheme"
)

// authenticate refuses requests without a valid bearer token. It reads the token only from the Authorization header: a
// token in a query string ends up in logs.
func (s *service) authenticate(c *gin.Context) {
	raw, rule := bearer(c.Request.Header)
	if rule != "" {
		s.refuse(c, s.unauthenticated(c, rule, "no bearer token", "Bearer",
			"A bearer token is required: send one Authorization header with the scheme Bearer."))
		return
	}
	principal, err := s.Tokens.Verify(c.Request.Context(), raw)
	if errors.Is(err, token.ErrInvalid) {
		s.refuse(c, s.unauthenticated(c, token.RuleOf(err), err.Error(), `Bearer error="invalid_token"`,
			"The bearer token in the Authorization header is invalid or expired."))
		return
	}
	if err != nil {
		s.refuse(c, err)
		return
	}
	c.Set(principalKey, principal)
}

// unauthenticated is a 401 with its challenge (RFC 6750 section 3). The violated rule is in the log line, the metric and the
// audit event, where an operator finds it. The response does not have it, because it would help a forger.
func (s *service) unauthenticated(c *gin.Context, rule token.Rule, reason, challenge, text string) refusal {
	s.metrics.unauthenticated.WithLabelValues(string(rule)).Inc()
	c.Set(ruleKey, string(rule))
	c.Set(reasonKey, reason)
	return refused(http.StatusUnauthorized, "login", text, "WWW-Authenticate", challenge)
}

// bearer returns the token of the only Authorization header, or the violated rule. The scheme's case does not matter (RFC
// 9110 section 11.1).
func bearer(header http.Header) (string, token.Rule) {
	values := header.Values("Authorization")
	if len(values) > 1 {
		return "", ruleAmbiguous
	}
	scheme, credentials, _ := strings.Cut(strings.Join(values, ""), " ")
	credentials = strings.TrimSpace(credentials)
	switch {
	case len(values) == 0:
		return "", ruleNoToken
	case !strings.EqualFold(scheme, "Bearer"):
		return "", ruleScheme
	case credentials == "":
		return "", ruleNoToken
	}
	return credentials, ""
}

// principalOf returns the authenticated caller. Every route that calls it has authenticate before it.
func principalOf(c *gin.Context) token.Principal {
	return c.MustGet(principalKey).(token.Principal)
}
