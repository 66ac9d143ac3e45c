// Package token verifies bearer tokens: signature, issuer, audience, times and subject, and reads their scopes. It is
// the only package that knows the JOSE library (docs/adr/0004).
package token
