// Package tokenapi is the HTTP side of the token service: SMART Backend Services (client_credentials with
// private_key_jwt), and HTTP Basic with a client secret where that is switched on.
//
// It promises that a token is given only to a registered client that has proved with a key of its own, or its secret,
// who it is; that each proof by a key is used once, and that this was recorded before a token was made; that the token
// reads no more than was registered; and that an answer about a client that is not registered is, byte for byte, the one
// about a wrong signature. Every refusal is the JSON of RFC 6749 section 5.2; none repeats what was sent.
//
// It keeps no state but the signing keys of the last half minute: everything else is in Redis, and when that is down
// the answer is 503.
package tokenapi
