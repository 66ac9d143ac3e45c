// Package tokenapi is the HTTP interface of the token service: SMART Backend Services (client_credentials with
// private_key_jwt), and optionally HTTP Basic with a client secret.
//
// It issues a token only to a registered client that has authenticated. An assertion works once, and its use is recorded
// before a token is signed. A token reads no more than the client's registration allows. The response about an unknown
// client equals, byte for byte, the one about a wrong signature. Every refusal is the JSON of RFC 6749 section 5.2, and
// none repeats what was sent.
//
// Its only state is the signing keys, at most half a minute old. Everything else is in Redis; while Redis is down the
// response is 503.
package tokenapi
