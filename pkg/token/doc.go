// Package token verifies bearer tokens and reads their scopes, and signs and verifies what clients and the token service
// exchange. It is the only package that uses the JOSE library (docs/adr/0004).
//
// It returns a Principal only for a compact JWS of at most 8 KiB that a configured issuer signed with a key of its
// published set, that names one of our audiences and a subject, and that is valid by the injected clock; or for a token
// that its issuer's introspection endpoint reports active with the same claims (RFC 7662), in a response no older than
// configured. Everything else is ErrInvalid. The error is export.ErrUnavailable when the key set or the response cannot be
// fetched.
//
// It refuses: every algorithm except RS256, RS384, ES256, ES384 and PS256, so none and the HMACs are refused in any
// configuration; keys for encryption, keys published with their private half, keys of another type or curve than the
// algorithm needs, and RSA keys of fewer than 2048 bits; two keys that fit one token; headers that change what is signed
// or nest a token (crit, b64, cty) or mark it as another kind of token (typ); duplicate claims; times that are not
// numbers; tokens bound to a key (cnf). It ignores headers that bring their own key (jwk, jku, x5c, x5u): keys come from
// the configuration alone. Errors never contain any part of a token.
//
// The keyring is our own code because jwk.Cache of the JOSE library limits neither the size of a response, nor the time
// that a stale set serves, nor the rate of fetches for unknown keys. The caches are plain LRUs with a time in each entry
// because expirable of golang-lru has one lifetime for all entries, no injected clock, and a goroutine that never ends.
package token
