package token

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/sluice-fhir/sluice/pkg/export"
)

// maxSubject is the size limit of a subject in bytes; every job record has one. OpenID Connect allows 255 characters.
const maxSubject = 1024

// subjectClaims and scopeClaims return the claims that known providers use, the default first. Other claims are not
// allowed: users choose their name or address themselves, and it may later belong to another person.
func subjectClaims() []string { return []string{"sub", "azp", "appid", "client_id", "cid", "oid"} }
func scopeClaims() []string   { return []string{"scope", "scp", "roles", "permissions"} }

func (i Issuer) checkClaims() error {
	var problems []error
	if i.SubjectClaim != "" && !slices.Contains(subjectClaims(), i.SubjectClaim) {
		problems = append(problems, fmt.Errorf("subject claim %q is not one of %v", i.SubjectClaim, subjectClaims()))
	}
	if i.ScopeClaim != "" && !slices.Contains(scopeClaims(), i.ScopeClaim) {
		problems = append(problems, fmt.Errorf("scope claim %q is not one of %v", i.ScopeClaim, scopeClaims()))
	}
	for name, value := range i.RequiredClaims {
		if name == "" || value == "" {
			problems = append(problems, errors.New("a required claim has no name or no value"))
		}
	}
	return errors.Join(problems...)
}

// principal returns the Principal of the claims. The caller checks the signature and the times.
func (i *issuer) principal(c claims) (Principal, error) {
	for name, want := range i.RequiredClaims {
		if got, ok := text(c.all[name]); !ok || got != want {
			return Principal{}, invalid(RuleClaim, "a required claim is missing or has another value")
		}
	}
	if _, bound := c.all["cnf"]; bound {
		// Its bearer must prove possession of a key (RFC 7800, 8705, 9449), which Sluice cannot check.
		return Principal{}, invalid(RuleKind, "bound to a key")
	}
	subject, ok := text(c.all[i.SubjectClaim])
	if !ok || len(subject) > maxSubject {
		return Principal{}, invalid(RuleMalformed, "no subject, or one longer than 1 KiB")
	}
	var list []string // without scopes the token allows no reads
	if raw, present := c.all[i.ScopeClaim]; present && string(raw) != `""` {
		if list, ok = texts(raw); !ok {
			return Principal{}, invalid(RuleMalformed, i.ScopeClaim+" is neither a string nor an array of strings")
		}
	}
	scopes, err := ParseScopes(strings.Join(list, " "))
	if err != nil {
		return Principal{}, refusal{RuleScope, err}
	}
	return Principal{
		Owner: export.Owner{Issuer: i.Name, Subject: subject}, Scopes: scopes, Expires: c.expires,
	}, nil
}
