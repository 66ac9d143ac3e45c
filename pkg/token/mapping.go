package token

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/sluice-fhir/sluice/pkg/export"
)

// mapping names the claims of an issuer's tokens that make a Principal.
type mapping struct {
	subject, scope string            // names of claims
	required       map[string]string // claims that must have exactly this text
}

const (
	subjectClaim = "sub"
	scopeClaim   = "scope"

	// maxSubject limits what becomes part of every job record, in bytes. OpenID Connect allows 255 characters.
	maxSubject = 1024
)

// subjectClaims and scopeClaims are the claims that known providers use. A free choice would allow a name or an address,
// which people choose themselves and which may later belong to another person.
func subjectClaims() []string {
	return []string{subjectClaim, "azp", "appid", "client_id", "cid", "oid"}
}
func scopeClaims() []string { return []string{scopeClaim, "scp", "roles", "permissions"} }

func (i Issuer) mapping() mapping {
	m := mapping{subject: i.SubjectClaim, scope: i.ScopeClaim, required: maps.Clone(i.RequiredClaims)}
	if m.subject == "" {
		m.subject = subjectClaim
	}
	if m.scope == "" {
		m.scope = scopeClaim
	}
	return m
}

func (i Issuer) checkMapping() error {
	var problems []error
	m := i.mapping()
	if !slices.Contains(subjectClaims(), m.subject) {
		problems = append(problems, fmt.Errorf("subject claim %q is not one of %v", m.subject, subjectClaims()))
	}
	if !slices.Contains(scopeClaims(), m.scope) {
		problems = append(problems, fmt.Errorf("scope claim %q is not one of %v", m.scope, scopeClaims()))
	}
	for name, value := range m.required {
		if name == "" || value == "" {
			problems = append(problems, errors.New("a required claim has no name or no value"))
		}
	}
	return errors.Join(problems...)
}

// principal makes a Principal of the claims. The caller checks the signature and the times.
func (i *issuer) principal(c claims) (Principal, error) {
	for name, want := range i.mapping.required {
		if got, ok := text(c.all[name]); !ok || got != want {
			return Principal{}, invalid("a required claim is missing or has another value")
		}
	}
	if _, bound := c.all["cnf"]; bound {
		// Its bearer must prove possession of a key (RFC 7800, 8705, 9449), which Sluice cannot check.
		return Principal{}, invalid("bound to a key")
	}
	subject, ok := text(c.all[i.mapping.subject])
	if !ok || len(subject) > maxSubject {
		return Principal{}, invalid("no subject, or one longer than 1 KiB")
	}
	list, err := scopeList(c.all, i.mapping.scope)
	if err != nil {
		return Principal{}, invalid(err.Error())
	}
	scopes, err := ParseScopes(list)
	if err != nil {
		return Principal{}, fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return Principal{
		Owner: export.Owner{Issuer: i.name, Subject: subject}, Scopes: scopes, Expires: c.expires,
	}, nil
}

// scopeList reads a claim with scopes, a string or an array, as a space-separated list: "" when it is absent.
func scopeList(all members, name string) (string, error) {
	raw, present := all[name]
	if !present || string(raw) == `""` {
		return "", nil // the token may read nothing
	}
	list, ok := texts(raw)
	if !ok {
		return "", errors.New(name + " is neither a string nor an array of strings")
	}
	return strings.Join(list, " "), nil
}
