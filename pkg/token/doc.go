// Package token verifies bearer tokens and reads their scopes. It is the only package that knows the JOSE library
// (docs/adr/0004).
//
// It promises that a Principal comes only out of a compact JWS of at most 8 KiB that a configured issuer signed with
// a key of its published set, that names an audience of ours and a subject, and that is valid at the moment by the
// injected clock; or out of an issuer's answer, no older than configured, that a token which only it can read is active
// and says the same (RFC 7662). Everything else is ErrInvalid; when the key set or the answer cannot be had the error is
// export.ErrUnavailable.
//
// It refuses: every algorithm but RS256, RS384, ES256, ES384 and PS256 (so none and the HMACs too, whatever the
// configuration); keys for encryption, published with their private half, of another type or curve than the
// algorithm wants, or of fewer than 2048 bits; two keys that both answer to a token; headers that change what is
// signed or nest a token (crit, b64, cty) or make it something else than an access token (typ); repeated claims;
// times that are not whole seconds; tokens bound to a key (cnf). Headers that bring their own key (jwk, jku, x5c, x5u)
// are not looked at: keys come from the configuration alone. No error holds any part of a token.
package token
