package token

import (
	"bytes"
	"crypto"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/lestrrat-go/jwx/v2/jwa"
	"github.com/lestrrat-go/jwx/v2/jws"
)

// maxToken is the size limit of a token, in bytes.
const maxToken = 8 << 10

// members are the members of a JSON object, each as it was written.
type members = map[string]json.RawMessage

// parsed is a token whose signature has not been verified.
type parsed struct {
	header    members
	alg, kid  string
	claims    claims
	signed    []byte // header and payload as they were signed
	signature []byte
}

// claims are the claims that Sluice reads.
type claims struct {
	issuer, subject string
	audiences       []string
	expires         time.Time
	notBefore       time.Time // zero when absent
	issuedAt        time.Time // zero when absent
	all             members   // every claim, for issuers whose subject is another claim
}

// parse reads a compact JWS. It is stricter than RFC 7515: base64url must be canonical, because otherwise one signature has
// several encodings, and members must be distinct, because otherwise two parsers may see different tokens.
func parse(raw string) (parsed, error) {
	if len(raw) > maxToken {
		return parsed{}, invalid("too long")
	}
	parts := strings.Split(raw, ".")
	if len(parts) != 3 {
		return parsed{}, invalid("not a compact JWS")
	}
	var decoded [3][]byte
	for i, part := range parts {
		var err error
		if decoded[i], err = decodeSegment(part); err != nil {
			return parsed{}, invalid("not a compact JWS")
		}
	}
	t := parsed{signed: []byte(raw[:len(parts[0])+1+len(parts[1])]), signature: decoded[2]}
	if err := t.readHeader(decoded[0]); err != nil {
		return parsed{}, err
	}
	return t, t.claims.read(decoded[1])
}

// verify checks the signature with a key that fits the algorithm.
func (t *parsed) verify(key crypto.PublicKey) error {
	verifier, err := jws.NewVerifier(jwa.SignatureAlgorithm(t.alg))
	if err != nil {
		return fmt.Errorf("verify: %w", err)
	}
	if verifier.Verify(t.signed, t.signature, key) != nil {
		return invalid("signature does not verify") // the library's error may contain the token
	}
	return nil
}

var errSegment = errors.New("not base64url")

func decodeSegment(s string) ([]byte, error) {
	if s == "" || strings.ContainsAny(s, "\r\n") { // the decoder skips line breaks
		return nil, errSegment
	}
	return base64.RawURLEncoding.Strict().DecodeString(s)
}

func (t *parsed) readHeader(data []byte) error {
	header, err := readObject(data)
	if err != nil {
		return invalid("header is not one JSON object with distinct members")
	}
	// crit and b64 change what is signed; with cty, enc or zip the payload is not a set of claims.
	for _, name := range []string{"crit", "b64", "cty", "enc", "zip"} {
		if _, ok := header[name]; ok {
			return invalid("header has " + name)
		}
	}
	t.header = header
	var ok bool
	if t.alg, ok = text(header["alg"]); !ok {
		return invalid("header has no alg")
	}
	if raw, present := header["kid"]; present {
		if t.kid, ok = text(raw); !ok {
			return invalid("kid is not a string, or empty")
		}
	}
	if raw, present := header["typ"]; present {
		// An issuer signs other things with the same key, such as logout tokens (RFC 8725 3.11).
		typ, _ := text(raw)
		typ = strings.TrimPrefix(strings.ToLower(typ), "application/")
		if typ != "jwt" && typ != "at+jwt" {
			return invalid("typ is not that of an access token")
		}
	}
	return nil
}

func (c *claims) read(data []byte) error {
	payload, err := readObject(data)
	if err != nil {
		return invalid("payload is not one JSON object with distinct members")
	}
	c.all = payload
	var ok bool
	if c.issuer, ok = text(payload["iss"]); !ok {
		return invalid("no iss")
	}
	if c.subject, ok = text(payload["sub"]); !ok {
		return invalid("no sub")
	}
	if c.audiences, ok = texts(payload["aud"]); !ok {
		return invalid("no aud")
	}
	return c.readTimes()
}

// readTimes reads exp, which is required, nbf and iat.
func (c *claims) readTimes() (err error) {
	if c.expires, err = instant(c.all, "exp"); err != nil {
		return err
	}
	if c.expires.IsZero() {
		return invalid("no exp")
	}
	if c.notBefore, err = instant(c.all, "nbf"); err != nil {
		return err
	}
	c.issuedAt, err = instant(c.all, "iat")
	return err
}

// check compares the times with the clock.
func (c *claims) check(now time.Time) error {
	switch {
	case !now.Before(c.expires.Add(skew)):
		return invalid("expired")
	case now.Add(skew).Before(c.notBefore):
		return invalid("not valid yet")
	case now.Add(skew).Before(c.issuedAt):
		return invalid("issued in the future")
	}
	return nil
}

// readObject reads exactly one JSON object in valid UTF-8 without duplicate members. json.Unmarshal would take the last
// of two members and ignore the case of names.
func readObject(data []byte) (members, error) {
	if !utf8.Valid(data) {
		return nil, errors.New("not UTF-8")
	}
	dec := json.NewDecoder(bytes.NewReader(data))
	if open, err := dec.Token(); err != nil || open != json.Delim('{') {
		return nil, errors.New("not an object")
	}
	members := make(members)
	for dec.More() {
		name, err := dec.Token()
		if err != nil {
			return nil, err
		}
		key, ok := name.(string)
		if _, twice := members[key]; !ok || twice {
			return nil, errors.New("duplicate member")
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			return nil, err
		}
		members[key] = value
	}
	if _, err := dec.Token(); err != nil {
		return nil, err
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("trailing data")
	}
	return members, nil
}

// text reads a string that is not empty. It refuses control characters and the replacement character: decoding replaces
// malformed escapes by the latter, and two different subjects must never become equal.
func text(raw json.RawMessage) (string, bool) {
	var s string
	if len(raw) == 0 || raw[0] != '"' || json.Unmarshal(raw, &s) != nil {
		return "", false
	}
	bad := func(r rune) bool { return r == utf8.RuneError || unicode.IsControl(r) }
	return s, s != "" && strings.IndexFunc(s, bad) < 0
}

// texts reads a string or an array of strings, none of them empty.
func texts(raw json.RawMessage) ([]string, bool) {
	if one, ok := text(raw); ok {
		return []string{one}, true
	}
	var elements []json.RawMessage
	if len(raw) == 0 || raw[0] != '[' || json.Unmarshal(raw, &elements) != nil {
		return nil, false
	}
	all := make([]string, 0, len(elements))
	for _, element := range elements {
		one, ok := text(element)
		if !ok {
			return nil, false
		}
		all = append(all, one)
	}
	return all, true
}

// instant reads a NumericDate, or returns the zero time when it is absent. RFC 7519 allows fractions, but no issuer needs
// them and parsers differ on numbers such as 1e308. So only digits are accepted, at most eleven.
func instant(payload members, name string) (time.Time, error) {
	raw, present := payload[name]
	if !present {
		return time.Time{}, nil
	}
	const mostDigits = 11
	seconds, err := strconv.ParseUint(string(raw), 10, 63)
	if err != nil || len(raw) > mostDigits {
		return time.Time{}, invalid(name + " is not a whole number of seconds")
	}
	return time.Unix(int64(seconds), 0).UTC(), nil
}
