package tokenapi

import (
	"cmp"
	"context"
	"encoding/base64"
	"errors"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/sluice-fhir/sluice/pkg/export"
	"github.com/sluice-fhir/sluice/pkg/token"
)

// proof is the client authentication of a request: an assertion, or an id and a secret.
type proof struct {
	client    string // claimed id
	assertion *token.Assertion
	secrets   []string // the two readings of HTTP Basic
	basic     bool
	flaw      *flaw // why it is invalid for every client; nil if well-formed
}

type flaw struct {
	rule  token.Rule
	cause error
}

// The rules of this service, in addition to those of assertions.
const (
	ruleBasic    token.Rule = "basic"          // malformed, or switched off
	ruleClientID token.Rule = "client_id"      // client_id names another client
	ruleClient   token.Rule = "unknown_client" // not registered
	ruleSecret   token.Rule = "secret"         // wrong, or no client with a secret
	ruleKeys     token.Rule = "keys"           // of the client cannot be fetched
	ruleReplay   token.Rule = "replay"         // the assertion was used before
)

// readProof returns the proof of a request. Several proofs, or one in an unsupported place, are an invalid request (RFC
// 6749 section 2.3); a malformed one is a failed authentication.
func (s *Service) readProof(r *http.Request, form map[string]string) (proof, *problem) {
	headers := r.Header.Values("Authorization")
	asserted := form["client_assertion"] != "" || form["client_assertion_type"] != ""
	switch {
	case form["client_secret"] != "":
		return proof{}, invalidRequest("client_secret is not supported: use HTTP Basic or client_assertion")
	case len(headers) > 1 || len(headers) == 1 && asserted:
		return proof{}, invalidRequest("more than one way to authenticate in one request")
	case len(headers) == 1:
		return readBasic(headers[0], form["client_id"]), nil
	case form["client_assertion_type"] == "":
		return proof{}, invalidRequest("client_assertion_type is missing")
	case form["client_assertion_type"] != token.AssertionType:
		return proof{}, invalidRequest("client_assertion_type must be " + token.AssertionType)
	case form["client_assertion"] == "":
		return proof{}, invalidRequest("client_assertion is missing")
	}
	assertion, err := s.assertions.Parse(form["client_assertion"])
	if err != nil {
		return proof{flaw: &flaw{token.RuleOf(err), err}}, nil
	}
	p := proof{client: assertion.Client, assertion: assertion}
	if id := form["client_id"]; id != "" && id != assertion.Client { // RFC 7521 section 4.2
		p.flaw = &flaw{ruleClientID, errors.New("client_id is not the sub of the assertion")}
	}
	return p, nil
}

// readBasic reads HTTP Basic, whose id and secret are form-urlencoded once more (RFC 6749 section 2.3.1). Many clients send
// the secret as it is, so it is also tried so. An id has no character that form-urlencoding changes, except those after
// which a client that does not encode cannot use HTTP Basic at all (RFC 7617: no colon).
func readBasic(header, clientID string) proof {
	bad := proof{basic: true, flaw: &flaw{ruleBasic,
		errors.New("the header Authorization is not HTTP Basic with a client id and secret")}}
	scheme, encoded, _ := strings.Cut(header, " ")
	text, err := base64.StdEncoding.Strict().DecodeString(strings.TrimSpace(encoded))
	if !strings.EqualFold(scheme, "Basic") || err != nil {
		return bad
	}
	id, secret, found := strings.Cut(string(text), ":")
	client, err := url.QueryUnescape(id)
	if !found || err != nil || client == "" || secret == "" {
		return bad
	}
	p := proof{basic: true, client: client, secrets: []string{secret}}
	if decoded, err := url.QueryUnescape(secret); err == nil && decoded != secret {
		p.secrets = append(p.secrets, decoded)
	}
	if clientID != "" && clientID != client {
		p.flaw = &flaw{ruleClientID, errors.New("client_id differs from the id in Authorization")}
	}
	return p
}

// authenticate returns the client that the proof authenticates. It counts wrong secrets, and after too many of them it
// refuses without checking the secret. Nobody can guess a signature, so assertions are neither counted nor blocked:
// counting them would allow anyone to lock out the clients that share an address.
func (s *Service) authenticate(ctx context.Context, p proof, address string) (token.Client, *problem) {
	if p.flaw != nil {
		refused := unauthenticated(p.basic, p.flaw.rule, p.flaw.cause)
		if errors.Is(p.flaw.cause, token.ErrInvalid) {
			// The error depends only on the assertion, so the text does not reveal whether the client exists.
			refused.text = "client_assertion: " + p.flaw.cause.Error()
		}
		return token.Client{}, refused
	}
	if !p.basic {
		return s.prove(ctx, p)
	}
	wait, err := s.deps.Store.Wait(ctx, s.cfg.Limits, p.client, address)
	if err != nil {
		return token.Client{}, unavailable(err)
	}
	if wait > 0 {
		return token.Client{}, limited(wait)
	}
	client, refused := s.prove(ctx, p)
	if refused == nil || refused.code != "invalid_client" {
		return client, refused
	}
	if err := s.deps.Store.Failed(ctx, s.cfg.Limits, p.client, address); err != nil {
		return token.Client{}, unavailable(err)
	}
	return token.Client{}, refused
}

func (s *Service) prove(ctx context.Context, p proof) (token.Client, *problem) {
	client, err := s.deps.Clients.Client(ctx, p.client)
	switch {
	case errors.Is(err, export.ErrNotFound):
		client = token.Client{} // fails below like a wrong proof
	case errors.Is(err, export.ErrUnavailable):
		return token.Client{}, unavailable(err)
	case err != nil:
		return token.Client{}, broken(err)
	}
	if p.basic {
		known := false
		for _, secret := range p.secrets {
			known = client.HasSecret(secret) || known
		}
		switch {
		case !s.cfg.ClientSecrets:
			return token.Client{}, unauthenticated(true, ruleBasic, errors.New("client secrets are switched off"))
		case !known:
			return token.Client{}, unauthenticated(true, ruleSecret, errors.New("wrong secret, or no client with a secret"))
		}
		return client, nil
	}
	if client.ID == "" {
		return token.Client{}, unauthenticated(false, ruleClient, errors.New("no such client"))
	}
	if err := s.assertions.Verify(ctx, p.assertion, client); err != nil {
		return token.Client{}, unauthenticated(false, cmp.Or(token.RuleOf(err), ruleKeys), err)
	}
	return client, s.useOnce(ctx, p.assertion)
}

// clockDifference is how far the clocks of two replicas may differ. An assertion that has expired for one replica is valid
// for that long for another one, so its jti is kept for longer.
const clockDifference = 15 * time.Minute

// useOnce refuses an assertion that was used before (B-21). It comes after the check of the signature, so that only the
// client can use up a jti.
func (s *Service) useOnce(ctx context.Context, assertion *token.Assertion) *problem {
	remember := assertion.RememberUntil.Sub(s.cfg.Now())
	first, err := s.deps.Store.UseOnce(ctx, assertion.Client, assertion.ID, remember+clockDifference)
	if err != nil {
		return unavailable(err)
	}
	if !first && !s.cfg.AllowReplay {
		return unauthenticated(false, ruleReplay, errors.New("the assertion was used before"))
	}
	return nil
}
