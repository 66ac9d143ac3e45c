// Package tokenapi is the HTTP interface of the token service: SMART Backend Services (client_credentials with
// private_key_jwt), and optionally HTTP Basic with a client secret.
//
// It issues a token only to a registered client that has authenticated. An assertion is accepted once, and its use is
// recorded before a token is signed. The scopes of a token never exceed the client's registration. The response for an
// unknown client is byte-identical to the response for a wrong signature. Every refusal is the JSON error of RFC 6749
// section 5.2, and contains no input of the request.
//
// The process holds only the signing keys, at most half a minute old. All other state is in Redis; while Redis is down the
// response is 503.
package tokenapi
